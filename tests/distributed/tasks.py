"""The tasks of the shipped recipes at a size of seconds, on what the repository and scikit-learn carry."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

BERT = "{model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}"
LLAMA = (
    "{model_type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2, "
    "intermediate_size: 64, attention_dropout: 0.0}"
)
T5 = "{model_type: t5, d_model: 32, d_kv: 16, d_ff: 64, num_layers: 2, num_heads: 2, dropout_rate: 0.0}"
NO_DROPOUT = "hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0"

OPINIONS = [("a fine film", "good"), ("a dull film", "bad"), ("fine and warm", "good"), ("dull and long", "bad")]


def write_rows(folder: Path) -> None:
    """reviews.tsv, talks.jsonl, choices.jsonl, pairs.tsv and digits/ (IDX)."""
    subjects = ["story", "music", "captain", "ship", "whale", "sea", "crew", "voyage", "storm", "island"]
    rows = [(f"{text}, with a {subject}", label) for text, label in OPINIONS for subject in subjects]
    lines = "".join(f"{text}\t{label}\n" for text, label in rows)
    (folder / "reviews.tsv").write_text("text\tlabel\n" + lines)
    talks = [[{"role": "user", "content": f"Tell me of the {s}."}, {"role": "assistant", "content": f"The {s} is old."}]
             for s in subjects * 2]  # fmt: skip
    for number, talk in enumerate(talks):
        talk[0]["content"] += f" ({number})"
    (folder / "talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    choices = [{"prompt": talk[0]["content"], "chosen": talk[1]["content"], "rejected": "No."} for talk in talks]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    pairs = "".join(
        f"das {s} ist {a} {n}\tthe {s} is {a} {n}\n" for n, s in enumerate(subjects) for a in ("alt", "neu")
    )
    (folder / "pairs.tsv").write_text("source\ttarget\n" + pairs)
    write_digits(folder / "digits")


def write_digits(folder: Path, train: int = 1500) -> None:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, in MNIST's format."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = (digits.images * 15.9375).astype(np.uint8), digits.target.astype(np.uint8)
    folder.mkdir()
    for stem, part in (("train", slice(None, train)), ("t10k", slice(train, None))):
        for kind, values in (("images-idx3-ubyte", images[part]), ("labels-idx1-ubyte", labels[part])):
            head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            (folder / f"{stem}-{kind}").write_bytes(head + values.tobytes())


def tasks(folder: Path, model: Path | None = None) -> dict[str, list[str]]:
    """Overrides of each task; `model`: a pretrained causal model with a tokenizer, for what needs one."""
    bert = BERT.replace("}", f", {NO_DROPOUT}}}")
    found = {
        "bert_classification": [
            "recipe=finetune/bert_classification", f"data.path={folder}/reviews.tsv", "data.tokenizer=null",
            "data.vocab_size=300", "model.path=null", f"model.config={bert}", "data.held_out=0.25",
        ],
        "bert_base": [
            "recipe=pretrain/bert_base", "data.path=pkg://bigtrain/data/corpus/moby-dick.txt.xz", "data.name=null",
            r"data.document_separator='(?m)^(?=CHAPTER \d+\.)'", "data.max_documents=12", "data.tokenizer=null",
            "data.vocab_size=400", "data.sequence_length=32", f"model.config={bert}", "data.held_out=0.2",
            "data.masking.whole_words=true",
        ],
        "t5_small": [
            "recipe=pretrain/t5_small", "data.path=pkg://bigtrain/data/corpus/moby-dick.txt.xz", "data.name=null",
            r"data.document_separator='(?m)^(?=CHAPTER \d+\.)'", "data.max_documents=12", "data.tokenizer=null",
            "data.vocab_size=450", "data.sequence_length=32", f"model.config={T5}", "data.held_out=0.2",
        ],
        "t5_translation": [
            "recipe=finetune/t5_translation", f"data.path={folder}/pairs.tsv", "data.name=null", "data.tokenizer=null",
            "data.source_column=source", "data.target_column=target", "data.vocab_size=300", "model.path=null",
            f"model.config={T5}", "data.held_out=0.2",
        ],
        "mnist_cnn": ["recipe=vision/mnist_cnn", f"data.path={folder}/digits", "model.image_size=8", "model.width=8",
                      "model.dropout=0.0", "data.shift=1"],
        "vit": ["recipe=vision/vit", f"data.path={folder}/digits", "model.image_size=8", "model.patch_size=4",
                "model.width=32", "model.layers=2", "model.dropout=0.0"],
        "lstm": ["recipe=chatbot/lstm", f"data.path={folder}/pairs.tsv", "data.vocab_size=300", "model.width=32",
                 "model.dropout=0.0", "model.word_dropout=0.0", "model.word_shuffle=0.0", "data.held_out=0.2"],
    }  # fmt: skip
    if model is not None:
        chat = ["data.tokenizer=" + str(model), f"model.path={model}", "data.sequence_length=96", "data.split=train"]
        small = "trainer.activation_checkpointing=full"
        found |= {
            "sft_chat": ["recipe=finetune/sft_chat", f"data.path={folder}/talks.jsonl", *chat, "data.held_out=0.2"],
            "llama_lora": ["recipe=finetune/llama_lora", f"data.path={folder}/talks.jsonl", *chat, small,
                           "model.lora.rank=4", "data.held_out=0.2"],
            "dora": ["recipe=finetune/llama_lora", f"data.path={folder}/talks.jsonl", *chat,
                     "model.lora={rank: 4, dora: true, targets: [q_proj, v_proj]}", "data.held_out=0.2"],
            "qlora": ["recipe=finetune/llama_lora", f"data.path={folder}/talks.jsonl", *chat, small,
                      "model.lora={rank: 4, quantize: nf4}", "data.held_out=0.2"],
            "dpo": ["recipe=finetune/dpo", f"data.path={folder}/choices.jsonl", *chat, "data.eval_split=null",
                    "data.held_out=0.2"],
        }  # fmt: skip
    common = [
        "trainer.device=cpu", "precision=fp32", f"data.cache={folder}/cache", "trainer.global_batch_size=8",
        "trainer.micro_batch_size=4", "trainer.epochs=null", "trainer.max_steps=3", "trainer.log_every=1",
        "trainer.eval_every=null", "optimizer.lr=1e-2", "schedule.warmup_steps=0",
    ]  # fmt: skip
    return {name: [*words, *common] for name, words in found.items()}


def small_llama(folder: Path) -> Path:
    """A pretrained chat model of 2 layers, with a tokenizer that has a chat template."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from bigtrain.data.chats import CHATML
    from bigtrain.data.tokenizer import load, save, train

    place = folder / "llama"
    texts = (line for file in ("talks.jsonl", "pairs.tsv") for line in (folder / file).read_text().splitlines())
    save(train(texts, 320, ["<|im_start|>", "<|im_end|>"]), place)
    tokenizer = load(place)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(place)
    torch.manual_seed(5)
    config = AutoConfig.for_model(
        "llama", vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=64, attention_dropout=0.0, initializer_range=0.1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    return place


def numbers(ranks: Any, words: list[str], run_dir: str) -> list[tuple[int, str, dict[str, float]]]:
    """Train as the worker does; every line of metrics."""
    from bigtrain.assembly import assemble, check_parts, prepared_data, run_loop
    from bigtrain.config.compose import compose
    from bigtrain.trainer import Stop

    composed = compose([*words, f"run.dir={run_dir}"], world_size=ranks.world_size)
    config = composed.config
    schedule, objective = check_parts(config)
    parts = assemble(config, ranks, prepared_data(config), schedule, objective)
    found: list[tuple[int, str, dict[str, float]]] = []
    run_loop(parts, Stop(), lambda step, split, of: found.append((step, split, dict(of))), lambda step: None)
    parts.engine.close()
    return found
