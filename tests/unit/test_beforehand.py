"""What of a model is refused before any data are prepared, and what a wrong path is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bigtrain.assembly import prepared_data
from bigtrain.config.compose import compose
from bigtrain.data import Images, text
from bigtrain.errors import UserError, nearest_path
from bigtrain.models.beforehand import check_beforehand
from tests.distributed.tasks import tasks, write_digits, write_rows

LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "vocab_size": 64}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder)
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A configuration without weights: they are not looked for."""
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(LLAMA | {"architectures": ["LlamaForCausalLM"]}))
    return tmp_path / "llama"


def hugging_face(**settings: Any) -> dict[str, Any]:
    return {"_target_": "bigtrain.models.hugging_face", **settings}


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ("bert_classification model.lora={rank:2,targets:[qery]}", r"qery matches no.*query \(2\).*mean 'query'\?"),
        ("bert_classification model.lora={rank:2,targets:['(']}", r"'\(' is no regular expression"),
        ("bert_classification model.path={}/llma model.config=null", "model.path=.*/llma: there is no such.*/llama'"),
        ("mnist_cnn model.image_size=28", "images are 1 x 8 x 8 .*takes 1 x 28 x 28: .*model.image_size=8"),
        ("vit model.channels=3", "images are 1 x 8 x 8 .*takes 3 x 8 x 8"),
    ],
)
def test_nothing_is_prepared_before_the_model_is_refused(
    rows: Path, llama: Path, tmp_path: Path, overrides: str, fault: str
) -> None:
    task, *words = overrides.format(tmp_path).split() if "{}" in overrides else overrides.split()
    words = [*tasks(rows)[task], *words, "engine=ddp", f"data.cache={tmp_path}/cache", f"run.dir={tmp_path}/run"]
    with pytest.raises(UserError, match=fault):
        prepared_data(compose(words).config)
    assert not (tmp_path / "cache").exists()


def test_adapters_are_looked_up_without_weights(llama: Path) -> None:
    for lora in ({"targets": ["q_proj", r"model\.layers\.1\..*"]}, {"targets": "all-linear"}):
        check_beforehand(hugging_face(path=str(llama), lora=lora))
        check_beforehand(hugging_face(config=LLAMA, lora=lora))
    with pytest.raises(UserError, match=r"q_prj matches no linear layer; there are q_proj \(2\).*mean 'q_proj'\?"):
        check_beforehand(hugging_face(path=str(llama), lora={"targets": ["q_prj"]}))
    check_beforehand(hugging_face(path=str(llama), lora={"quantize": "nf4"}))
    with pytest.raises(UserError, match="model.config has random ones"):  # 4 bits of what no run could make again
        check_beforehand(hugging_face(config=LLAMA, lora={"quantize": "nf4"}))
    with pytest.raises(UserError, match="is a llama, which is not a model for masked lm"):
        check_beforehand(hugging_face(path=str(llama), task="masked_lm"))


def test_a_wrong_path_names_its_setting_and_the_nearest_thing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^model.path=lama: .*the hub did not give it.*Did you mean 'llama'\?"):
        check_beforehand(hugging_face(path="lama"))
    with pytest.raises(UserError, match=r"^model.teacher=\./lama: there is no such.*Did you mean 'llama'\?"):
        check_beforehand(hugging_face(path="llama", teacher="./lama"))
    with pytest.raises(UserError, match=r"^model.path=/.*/lama/deeper: there is no such.*Did you mean '/.*/llama'\?"):
        check_beforehand({"_target_": "bigtrain.models.decoder", "path": str(tmp_path / "lama" / "deeper")})


def test_run_folders_are_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, file in (("corpsu", ".pending.yaml"), ("runs/quickstart/1", "config.yaml"), ("mine", "whale.txt")):
        Path(folder).mkdir(parents=True)
        Path(folder, file).write_text("")
    with pytest.raises(UserError, match=r"data.path=corpus.txt: no such file or folder\. There are: mine\.$"):
        text(sequence_length=8, path="corpus.txt").folders  # noqa: B018 - asks for what is read
    with pytest.raises(UserError, match=r"there is no such folder.* There are: mine\.$"):
        Images(path="digits").folder  # noqa: B018
    assert nearest_path(Path("corpus")) == " Did you mean 'corpsu'?"


def test_the_shape_of_images_is_told_before_they_are_read(tmp_path: Path) -> None:
    from PIL import Image

    write_digits(tmp_path / "digits", 40)
    assert Images(path=str(tmp_path / "digits"), channels=3).shape == (1, 8)
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    Image.new("L", (6, 6)).save(tmp_path / "pictures" / "a" / "1.png")
    assert Images(path=str(tmp_path / "pictures"), channels=3).shape == (3, 6)
    assert Images(path=str(tmp_path / "pictures"), image_size=4).shape == (1, 4)
