"""Each recipe with the hub's names that it ships, from a hub on this machine, and with local paths in their place.

The data sets and models under these names are small ones; the road to them is the users' own, to the last request.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from bigtrain.data.chats import CHATML
from bigtrain.data.tokenizer import load, save, train
from tests.recipes.conftest import ENVIRONMENT
from tests.unit.data.hub_server import serve

SUBJECTS = ["story", "music", "captain", "ship", "whale", "sea", "crew", "voyage", "storm", "island"]
TEXTS = [f"The {subject} is {word}, and the {other} is not." for subject in SUBJECTS for word in ("old", "new")
         for other in SUBJECTS[:4]]  # fmt: skip
TALKS = [[{"role": "user", "content": f"Tell me of the {subject}, {number}."},
          {"role": "assistant", "content": f"The {subject} is old."}]
         for subject in SUBJECTS for number in range(4)]  # fmt: skip
SIZES = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
              "intermediate_size": 64},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
}  # fmt: skip
MODELS = {
    "google-bert/bert-base-uncased": ("bert", "MaskedLM"),
    "openai-community/gpt2": ("gpt2", "CausalLM"),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", "CausalLM"),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", "CausalLM"),
    "google-t5/t5-small": ("t5", "Seq2SeqLM"),
}


def small(kind: str) -> str:
    return f"model.config={{model_type: {kind}, {', '.join(f'{key}: {value}' for key, value in SIZES[kind].items())}}}"


RECIPES = {
    "pretrain/bert_base": ("Salesforce/wikitext", ["data.sequence_length=32", small("bert"), "data.held_out=0.2"]),
    "pretrain/t5_small": ("Salesforce/wikitext", ["data.sequence_length=32", small("t5"), "data.held_out=0.2"]),
    "finetune/gpt2": (None, ["data.sequence_length=32", "data.max_documents=4", "data.held_out=0.3"]),
    "finetune/bert_classification": ("cornell-movie-review-data/rotten_tomatoes", []),
    "finetune/llama_lora": ("HuggingFaceH4/no_robots", ["data.sequence_length=128"]),
    "finetune/sft_chat": ("HuggingFaceTB/everyday-conversations-llama3.1-2k", ["data.sequence_length=128"]),
    "finetune/dpo": ("HuggingFaceH4/ultrafeedback_binarized", ["data.sequence_length=64"]),
    "finetune/t5_translation": ("Helsinki-NLP/opus_books", ["data.held_out=0.2"]),
}
SMALL = [
    "trainer.device=cpu", "engine=local", "precision=fp32", "trainer.global_batch_size=4", "trainer.micro_batch_size=4",
    "trainer.epochs=null", "trainer.max_steps=2", "trainer.log_every=1", "trainer.eval_every=null",
    "schedule.warmup_steps=0", "trainer.activation_checkpointing=none",
]  # fmt: skip


def write_hub(root: Path) -> None:
    """`datasets/` and `models/`, as the recipes name them."""
    import transformers

    def rows(name: str, file: str, columns: dict[str, list[Any]], configs: str = "") -> None:
        place = root / "datasets" / name / file
        place.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), place)
        if configs:
            (root / "datasets" / name / "README.md").write_text(f"---\n{configs}---\n")

    def config(name: str, *splits: str) -> str:
        files = "".join(f"  - split: {split}\n    path: '*{split}*.parquet'\n" for split in splits)
        return f"configs:\n- config_name: {name}\n  data_files:\n{files}"

    rows("Salesforce/wikitext", "train.parquet", {"text": TEXTS}, config("wikitext-103-raw-v1", "train"))
    labels = {"text": TEXTS, "label": [int("old" in text) for text in TEXTS]}
    rows("cornell-movie-review-data/rotten_tomatoes", "train.parquet", labels, config("default", "train"))
    rows("HuggingFaceH4/no_robots", "train.parquet", {"messages": TALKS}, config("default", "train"))
    everyday = "HuggingFaceTB/everyday-conversations-llama3.1-2k"
    rows(everyday, "train_sft.parquet", {"messages": TALKS}, config("default", "train_sft"))
    worse = [[*talk[:1], {"role": "assistant", "content": "No."}] for talk in TALKS]
    pairs = {"prompt": [talk[0]["content"] for talk in TALKS], "chosen": TALKS, "rejected": worse}
    for split in ("train_prefs", "test_prefs"):
        rows("HuggingFaceH4/ultrafeedback_binarized", f"{split}.parquet", pairs,
             config("default", "train_prefs", "test_prefs"))  # fmt: skip
    translated = [{"de": text.replace("The", "Das").replace("is", "ist"), "en": text} for text in TEXTS]
    rows("Helsinki-NLP/opus_books", "train.parquet", {"translation": translated}, config("de-en", "train"))

    sentinels = [f"<extra_id_{number}>" for number in range(100)]
    said = [message["content"] for talk in TALKS for message in talk]
    save(train(iter(TEXTS + said), 450, ["<|mask|>", "<|im_start|>", "<|im_end|>", *sentinels]), root / "tokenizer")
    tokenizer = load(root / "tokenizer")
    tokenizer.chat_template = CHATML
    for name, (kind, auto) in MODELS.items():
        transformers.set_seed(len(name))
        size = SIZES[kind] | {"vocab_size": 450} | ({"decoder_start_token_id": 0} if kind == "t5" else {})
        made = getattr(transformers, f"AutoModelFor{auto}").from_config(transformers.AutoConfig.for_model(kind, **size))
        made.save_pretrained(root / "models" / name)
        tokenizer.save_pretrained(root / "models" / name)


def losses(endpoint: str, home: Path, words: dict[str, list[str]]) -> dict[str, list[float]]:
    """The losses of every recipe, trained in a process that is told of this hub."""
    code = f"""
import json
from bigtrain.distributed import setup
from tests.distributed.tasks import numbers
if __name__ == "__main__":
    ranks, found = setup("cpu", 60), {{}}
    for recipe, words in {words!r}.items():
        lines = numbers(ranks, [f"recipe={{recipe}}", *words], {str(home)!r} + "/runs/" + recipe)
        found[recipe] = [line[2]["loss"] for line in lines]
    print(json.dumps(found))
"""
    environment = ENVIRONMENT | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.timeout(600)
def test_every_recipe_by_its_hub_names_and_by_local_paths(tmp_path: Path) -> None:
    write_hub(tmp_path)
    words = {recipe: [*SMALL, *own, f"data.cache={tmp_path}/by_name"] for recipe, (_, own) in RECIPES.items()}
    with serve(tmp_path) as (address, seen):
        by_name = losses(address, tmp_path / "named", words)
    for name in [*MODELS, *(data for data, _ in RECIPES.values() if data)]:
        assert any(name in request for request in seen), name

    local: dict[str, list[str]] = {}
    for recipe, (data, own) in RECIPES.items():
        given = [*SMALL, *own, f"data.cache={tmp_path}/by_path"]
        model = MODEL_OF[recipe]
        given += [f"data.tokenizer={tmp_path}/models/{model}"]
        given += [] if recipe.startswith("pretrain") else [f"model.path={tmp_path}/models/{model}"]
        if data is not None:
            folder = tmp_path / "datasets" / data
            files = sorted(folder.glob("*train*.parquet"))
            given += [f"data.path={files[0]}", "data.name=null", "data.split=train"]
            if recipe == "finetune/dpo":
                given += [f"data.eval_path={folder}/test_prefs.parquet", "data.eval_split=null"]
        local[recipe] = given
    by_path = losses("http://127.0.0.1:9", tmp_path / "pathed", local)
    assert by_path == by_name and len(by_name) == len(RECIPES)
    assert all(len(found) == 4 and found[1] != found[2] for found in by_name.values())


MODEL_OF = {
    "pretrain/bert_base": "google-bert/bert-base-uncased",
    "pretrain/t5_small": "google-t5/t5-small",
    "finetune/gpt2": "openai-community/gpt2",
    "finetune/bert_classification": "google-bert/bert-base-uncased",
    "finetune/llama_lora": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "finetune/sft_chat": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "finetune/dpo": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "finetune/t5_translation": "google-t5/t5-small",
}
