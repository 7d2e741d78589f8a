"""Rows of text: a Transformer from scratch, masked pretraining, classification, translation, two chatbots."""

from __future__ import annotations

import json
import math
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from _row import Row, evaluations

ERAS = {"before 1861": 1861, "1861 to 1913": 1914, "1914 to 1960": 1961, "since 1961": 9999}
"""The eras that sentences are told apart by, each with the first year behind it."""

MASKED_MODEL = (
    "{model_type: modernbert, hidden_size: 128, num_hidden_layers: 4, num_attention_heads: 4, intermediate_size: 384, "
    "max_position_embeddings: 128, pad_token_id: 0, bos_token_id: 0, eos_token_id: 0, "
    "cls_token_id: 0, sep_token_id: 0, classifier_pooling: mean}"
)
"""ModernBERT (Warner et al. 2024) at 1.4 million parameters: BERT itself is still at the unigram plateau by then."""

PARAPHRASES = {
    "My system is overheating.": "My system gets too hot, it is overheating.",
    "Which President of South Africa ordered Nelson Mandela’s release from prison?":
        "Which South African President ordered the release of Nelson Mandela from prison?",
    "My printer is not printing.": "Why is the printer not printing?",
    "I forgot my password.": "I have forgotten the password.",
    "My mouse is not responding.": "The mouse does not respond.",
    "My laptop screen is black.": "The screen of my laptop stays black.",
    "I can't hear any sound.": "There is no sound, I hear nothing.",
    "What are the bones in the fingers called?": "How are the bones in the fingers called?",
    "My internet is not working.": "The internet does not work.",
    "The Statue of Liberty was given to the US by which country?":
        "Which country gave the Statue of Liberty to the US?",
    "What is AI?": "what is AI",
    "What is a microprocessor?": "Tell me what a microprocessor is.",
    "Which country is the largest producer of vanilla?": "What country produces the most vanilla?",
    "What is the driest continent?": "Which continent is the driest?",
    "What is the most abundant element in the universe?": "Which element is the most abundant in the universe?",
    "What is the name of the Earth’s largest ocean?": "What is the largest ocean of the Earth?",
    "New York City comprises how many boroughs?": "How many boroughs does New York City have?",
    "Which Dutch artist painted \"Girl with a Pearl Earring\"?": "Who painted \"Girl with a Pearl Earring\"?",
    "Canberra is the capital city of which country?": "Canberra is the capital of what country?",
    "Where is the Sea of Tranquility located?": "Where is the Sea of Tranquility?",
}  # fmt: skip
"""Questions that are trained on, and the same in other words: written before any of them was tried."""


def from_scratch(row: Row) -> dict[str, Any]:
    """The addresses of every fifth year, 20 epochs, beside a 5-gram model on the same tokens."""
    from bigtrain.config.components import build
    from bigtrain.config.compose import compose

    words = (
        "recipe=quickstart", "data=text", f"data.path='{row.data}/sotu/???[05]_*.txt'", f"data.cache={row.cache}",
        "data.vocab_size=4096", "data.sequence_length=256", "data.held_out=0.1", "engine=local", "model.width=128",
        "model.layers=4", "model.heads=4", "model.dropout=0.3", "optimizer=muon", "optimizer.lr=4e-3",
        "schedule.warmup_steps=100", "trainer.max_steps=null", "trainer.epochs=20", "trainer.global_batch_size=16",
        "trainer.micro_batch_size=16", "trainer.log_every=50", "evaluation.generate=null", "launcher.cpu_processes=1",
    )  # fmt: skip
    data = build(compose(words).config.data, "data")
    data.prepare()
    epoch = math.ceil(len(data.train) / 16)  # steps
    run = row.train("run", *words, f"trainer.eval_every={epoch}")
    baseline = row.script("kneser_ney.py", str(data.folder))
    losses = {line["step"]: line["perplexity"] for line in evaluations(run)}
    last = max(losses)
    every = {number: losses[min(number * epoch, last)] for number in range(1, 21)}
    by_epoch = {number: every[number] for number in (1, 5, 10, 20)}
    falls = all(later < earlier for earlier, later in pairwise(by_epoch.values()))
    return {
        "system": "Transformer from scratch, 1.3 M parameters",
        "data": f"State of the Union, every fifth year: 20 epochs of {len(data.train) * 256 / 1e6:.2f} M tokens; "
                f"{len(data.eval) * 256:,} tokens held out, whole addresses",
        "found": f"perplexity {losses[last]:.1f}; 5-gram Kneser-Ney {baseline['perplexity']:.1f}",
        "perplexity_by_epoch": by_epoch, "perplexity_of_every_epoch": every,
        "perplexity": losses[last], "kneser_ney": baseline,
        "bars": {"perplexity falls over epochs 1, 5, 10, 20": falls,
                 f"below the 5-gram model's {baseline['perplexity']:.1f}": losses[last] < baseline["perplexity"]},
    }  # fmt: skip


def masked(row: Row) -> dict[str, Any]:
    """A small BERT on nine tenths of the addresses; then it tells the era of sentences of the others."""
    texts, sentences = _by_era(row)
    pretrained = row.train(
        "pretrained", "recipe=pretrain/bert_base", "data=masked_text", f"data.path={texts}", "data.tokenizer=null",
        "data.vocab_size=4096", "data.sequence_length=128", "data.held_out=0.05", "engine=local", "precision=fp32",
        f"model.config={MASKED_MODEL}", "data.masking.share=0.3", "optimizer=muon", "optimizer.lr=3e-3",
        "schedule.warmup_steps=200", "trainer.max_steps=1500", "trainer.global_batch_size=32",
        "trainer.micro_batch_size=32", "trainer.eval_every=500", "trainer.log_every=50", "launcher.cpu_processes=1",
        export=True,
    )  # fmt: skip
    words = (
        "recipe=finetune/bert_classification", f"data.path={sentences['train']}",
        f"data.eval_path={sentences['held_out']}", f"data.tokenizer={pretrained}/export", "data.sequence_length=96",
        "trainer.epochs=4", "optimizer.lr=5e-4", "launcher.cpu_processes=1", "engine=local",
    )  # fmt: skip
    scratch_words = ["model.path=null", f"model.config={MASKED_MODEL}"]
    tuned = evaluations(row.train("fine_tuned", *words, f"model.path={pretrained}/export"))
    scratch = evaluations(row.train("from_scratch", *words, *scratch_words))
    masked_accuracy = evaluations(pretrained)[-1]["accuracy"]
    unigram = _commonest(pretrained)
    best, without = (max(line["accuracy"] for line in lines) for lines in (tuned, scratch))
    return {
        "system": "masked language model, then fine-tuned",
        "data": "State of the Union, every tenth address held out; then 2,000 sentences of 4 eras",
        "found": f"{masked_accuracy:.1%} of masked tokens right (commonest token: {unigram:.1%}); eras {best:.1%}, "
                 f"from scratch {without:.1%}",
        "masked_accuracy": masked_accuracy, "unigram_rate": unigram, "eras_fine_tuned": best,
        "eras_from_scratch": without,
        "bars": {"masked accuracy >= 3 x the unigram rate": masked_accuracy >= 3 * unigram,
                 "fine-tuned better than from scratch": best > without},
    }  # fmt: skip


def _by_era(row: Row) -> tuple[Path, dict[str, Path]]:
    """(the addresses to pretrain on, tables of sentences with their era: `train` from these, `held_out` from others).

    Every tenth address is held out. 500 sentences an era to train on, 250 to measure with.
    """
    texts = row.folder / "texts"
    texts.mkdir(exist_ok=True)
    found: dict[tuple[str, str], list[str]] = {}
    for number, file in enumerate(sorted((row.data / "sotu").glob("*.txt"))):
        side = "held_out" if number % 10 == 9 else "train"
        content = file.read_text(encoding="utf-8", errors="replace")
        if side == "train":
            (texts / file.name).write_text(content, encoding="utf-8")
        era = next(name for name, end in ERAS.items() if int(file.name[:4]) < end)
        sentences = re.split(r"(?<=[.!?])\s+", " ".join(content.split()))
        found.setdefault((side, era), []).extend(each for each in sentences if 60 <= len(each) <= 400)
    tables = {}
    for side, each in (("train", 500), ("held_out", 250)):
        tables[side] = row.folder / f"sentences.{side}.jsonl"
        lines = [
            json.dumps({"text": text, "label": era})
            for era in ERAS
            for text in random.Random(0).sample(sorted(set(found[side, era])), each)
        ]
        tables[side].write_text("\n".join(lines) + "\n")
    return texts, tables


def _commonest(run: Path) -> float:
    """The share of the held-out targets that the commonest token is: what one who knows nothing else gets right."""
    import numpy as np

    from bigtrain.config.components import build
    from bigtrain.trained import load_trained

    config = load_trained(run).config
    assert config is not None
    samples = build(config.data, "data").eval
    labels = np.concatenate([np.asarray(samples[number]["labels"]) for number in range(len(samples))])
    counts = np.bincount(labels[labels >= 0])
    return float(counts.max() / counts.sum())


def classification(row: Row) -> dict[str, Any]:
    """Film reviews: the mean rating of 20 people is learnt, whose sign tells good from bad; a fifth is held out, and of
    that the reviews with a clear rating are measured."""
    rows = (row.data / "movie-reviews" / "movie-reviews.tsv").read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(rows)
    parts = [rows[number::5] for number in range(5)]
    accuracies: dict[float, list[float]] = {1.5: [], 1.0: []}
    for number, part in enumerate(parts):
        held_out = row.folder / f"part_{number}.tsv"
        held_out.write_text("\n".join(part) + "\n", encoding="utf-8")
        others = row.folder / f"all_but_{number}.tsv"
        others.write_text("\n".join(line for each in parts if each is not part for line in each) + "\n")
        run = row.train(
            f"fold_{number}", "recipe=finetune/bert_classification", f"data.path={others}",
            f"data.eval_path={held_out}", "data.columns=[id,rating,text]", "data.label_column=rating",
            "data.numbers=true", "objective=regression", f"model.path={row.data}/minilm", "optimizer.lr=1e-4",
            "optimizer.weight_decay=0.1", "trainer.epochs=3", "trainer.eval_every=null",
        )  # fmt: skip
        said = row.folder / f"said_{number}.jsonl"
        row.evaluate(run, "--out", str(said))
        pairs = [(each["label"], each["predicted"]) for each in map(json.loads, said.read_text().splitlines())]
        for least, found in accuracies.items():
            clear = [(label > 0) == (guess > 0) for label, guess in pairs if abs(label) >= least]
            found.append(sum(clear) / len(clear))
    figures: dict[str, Any] = {
        "system": "BERT (MiniLM) fine-tuned to tell good from bad", "data": "film reviews, a fifth held out; 5 folds",
        "bars": {},
    }  # fmt: skip
    told = []
    for least, bar in ((1.5, 0.93), (1.0, 0.89)):
        folds = accuracies[least]
        mean = sum(folds) / len(folds)
        deviation = (sum((each - mean) ** 2 for each in folds) / (len(folds) - 1)) ** 0.5
        figures[f"from_{least}"] = {"accuracy": folds[0], "folds": folds, "mean": mean, "deviation": deviation}
        figures["bars"][f"{bar:.0%} from {least} on"] = folds[0] >= bar
        told.append(f"{folds[0]:.1%} from |rating| {least} on (folds {mean:.1%} ± {deviation:.1%})")
    return figures | {"found": "; ".join(told)}


GLOSSES = (
    "{% for message in messages %}{{ message['content'] }}"
    "{{ '\\n' if message['role'] == 'user' else '<|im_end|>' }}{% endfor %}"
)
"""A chat template of two lines: what is asked, what is answered."""
TRANSLATION_STEPS = 400
"""Of 32 pairs: what fits an hour of 2 cores."""


def translation(row: Row) -> dict[str, Any]:
    """A pretrained chat model with adapters makes sentences of a German sentence's glosses, word by word with a few
    translations each, on held-out sentences; beside it the dictionary's look-up word by word."""
    pairs, template = row.folder / "pairs.tsv", row.folder / "glosses.jinja"
    source = f"{row.data}/de-en/de-en.txt"
    made = row.script("dictionary.py", "prepare", source, str(pairs))
    baseline = row.script("dictionary.py", "score", source, str(pairs))
    template.write_text(GLOSSES)
    run = row.train(
        "run", "recipe=finetune/llama_lora", f"data.path={pairs.with_suffix('.train.tsv')}",
        f"data.eval_path={pairs.with_suffix('.held_out.tsv')}", "data.columns=[prompt,answer]",
        f"data.chat_template={template}", "data.packing=false", "data.sequence_length=128",
        f"model.path={row.data}/smollm2", "model.lora.rank=32", "model.lora.alpha=64", "engine=ddp", "precision=fp32",
        "trainer.activation_checkpointing=none", "trainer.epochs=null", f"trainer.max_steps={TRANSLATION_STEPS}",
        "trainer.global_batch_size=32", "trainer.micro_batch_size=16", "trainer.eval_every=null", "optimizer.lr=1e-3",
        "schedule.warmup_steps=20",
    )  # fmt: skip
    found = row.evaluate(run, "task=translation", "--batch-size", "64")
    return {
        "system": "translation: SmolLM2 135M (4-bit weights, spread to fp32) with LoRA",
        "data": f"{min(made['train'], 32 * TRANSLATION_STEPS):,} German-English sentence pairs, the German as glosses "
                f"word by word; {made['held_out']} sentences held out",
        "found": f"BLEU {found['bleu']:.1f}, chrF {found['chrf']:.1f}; dictionary word by word: BLEU "
                 f"{baseline['bleu']:.1f}, chrF {baseline['chrf']:.1f}",
        "bleu": found["bleu"], "chrf": found["chrf"], "held_out_loss": found["loss"], "dictionary": baseline,
        "bars": {"BLEU >= 2 x the dictionary's": found["bleu"] >= 2 * baseline["bleu"]},
    }  # fmt: skip


def chatbot(row: Row) -> dict[str, Any]:
    """Questions that it was trained on, twenty of them in other words, and the loss on those that it never saw."""
    from bigtrain.generate import answer
    from bigtrain.trained import load_trained

    run = row.train(
        "run", "recipe=chatbot/lstm", f"data.path={row.data}/chat", "launcher.cpu_processes=1", "launcher.threads=1"
    )  # matrices as small as these are faster on one core than on two
    trained = load_trained(run)
    known = _trained_pairs(trained)
    asked = random.Random(0).sample(sorted(known), 100)
    right = sum(answer(trained, question, 96) in known[question] for question in asked)
    transcript = [
        {"trained on": question, "asked": other, "answered": said, "right": said in known.get(question, ())}
        for question, other in PARAPHRASES.items()
        for said in [answer(trained, other, 96)]
    ]
    perplexity = evaluations(run)[-1]["perplexity"]
    in_other_words = sum(each["right"] for each in transcript)
    return {
        "system": "LSTM chatbot", "data": "customer service and small talk, 1,257 different pairs; a tenth held out",
        "found": f"{right} of 100 training questions answered as trained, {in_other_words} of 20 in other words; "
                 f"held-out perplexity {perplexity:.0f}",
        "answers_of_100_training_questions": right, "answers_of_20_paraphrases": in_other_words,
        "held_out_perplexity": perplexity, "transcript": transcript,
        "bars": {"answers its training questions": right == len(asked),
                 "and 20 of 20 in other words": in_other_words == len(PARAPHRASES)},
    }  # fmt: skip


def _trained_pairs(trained: Any) -> dict[str, set[str]]:
    """Every question of the training split with its answers."""
    from bigtrain.config.components import build
    from bigtrain.data.sets import IGNORE

    data = build(trained.config.data, "data")
    found: dict[str, set[str]] = {}
    for number in range(len(data.train)):
        sample = data.train[number]
        question, reply = (
            trained.tokenizer.decode([int(token) for token in ids if token != IGNORE], skip_special_tokens=True).strip()
            for ids in (sample["input_ids"], sample["labels"])
        )
        found.setdefault(question, set()).add(reply)
    return found


def chat_tuning(row: Row) -> dict[str, Any]:
    """A pretrained chat model with adapters on the same dialogues, and what it forgets of English."""
    words = (
        "recipe=finetune/llama_lora", f"data.path={row.data}/chat", f"model.path={row.data}/smollm2",
        "data.sequence_length=256", "data.held_out=0.1", "engine=local", "precision=fp32",
        "trainer.activation_checkpointing=none", "trainer.global_batch_size=8", "trainer.micro_batch_size=4",
        "trainer.eval_every=25", "launcher.cpu_processes=1",
    )  # fmt: skip
    book = row.folder / "moby-dick.txt"
    book.write_text((row.data / "moby-dick" / "moby-dick.txt").read_text(encoding="utf-8")[:100_000], encoding="utf-8")
    untouched = row.train("untouched", *words, "trainer.epochs=null", "trainer.max_steps=1", "optimizer.lr=1e-12")
    run = row.train("run", *words, "trainer.epochs=2")
    before, after = (evaluations(each)[-1]["loss"] for each in (untouched, run))
    general = [
        row.evaluate(each, "data=text", f"data.path={book}", "data.sequence_length=512",
                     f"data.cache={row.cache}")["perplexity"]
        for each in (untouched, run)
    ]  # fmt: skip
    return {
        "system": "chat fine-tuning: SmolLM2 135M (4-bit weights, spread to fp32) with LoRA",
        "data": "the chatbot's dialogues; a tenth held out; 100,000 characters of Moby Dick",
        "found": f"held-out loss {before:.3f} to {after:.3f} ({after / before - 1:+.0%}); perplexity of Moby Dick "
                 f"{general[0]:.2f} to {general[1]:.2f} ({general[1] / general[0] - 1:+.1%})",
        "held_out_loss_before": before, "held_out_loss_after": after, "moby_dick_perplexity_before": general[0],
        "moby_dick_perplexity_after": general[1],
        "bars": {"held-out loss falls by a fifth": after <= 0.8 * before,
                 "perplexity of Moby Dick rises by less than 5 %": general[1] < 1.05 * general[0]},
    }  # fmt: skip
