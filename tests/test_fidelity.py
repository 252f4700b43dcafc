"""Sample quality: torch-fidelity's own command agrees, any number of processes agrees, what is missing is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch_fidelity import feature_extractor_inceptionv3 as inception

from data_prep.arrays import array_source
from data_prep.writer import write_split
from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.config import Config, ConfigError
from dtrain.data.resident import ResidentLoader
from dtrain.data.shards import open_split
from dtrain.data.stream import Spec
from dtrain.distributed import distribute
from dtrain.evaluate import classifier
from dtrain.evaluate.extractors import DigitClassifier, make
from dtrain.evaluate.fidelity import Features, frechet, measure, scores, sliced
from dtrain.evaluate.preflight import check
from dtrain.models.base import Algorithm, DataFacts, Prior
from dtrain.noise import Noise
from dtrain.world import World, start
from tests.harness import evaluation_of
from tests.processes import launch

TRAIN, TEST = 40, 24


def write_images(folder: Path, shape: tuple[int, int, int], train: int = TRAIN, test: int = TEST) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        write_split(folder / split, array_source(images, rng.integers(0, 10, count), {"what": "noise"}, None, split))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 28 x 28, with an untrained classifier beside them."""
    folder = tmp_path_factory.mktemp("digits")
    write_images(folder, (28, 28, 1))
    torch.manual_seed(0)
    torch.save({"weights": DigitClassifier().state_dict(), "accuracy": 0.1}, folder / "classifier.pt")
    return folder


def make_config(shards: Path, *overrides: str) -> Config:
    return configs.read(configs.compose([
        "model=swae", "model.code_dim=3", "model.latent_dim=2", "model.width=4", "model.critic_width=4",
        "model.hidden=8",
        f"data.path={shards}", "trainer.batch_size=8", f"run.root={shards}", "evaluate.fidelity_samples=30",
        f"evaluate.digit_classifier={shards / 'classifier.pt'}", *overrides,
    ]))  # fmt: skip


def score(config: Config, algorithm: Algorithm, world: World, cache: Path) -> dict[str, float]:
    splits = [open_split(config.data.path / name) for name in ("train", "test")]
    spec = Spec(8, algorithm.value_range, rank=world.rank, world=world.size)
    train, test = (ResidentLoader(s, spec) for s in splits)
    algorithm.eval()
    with torch.no_grad():
        return scores(evaluation_of(algorithm, train, test, world, config.evaluate, cache))


class Painter(Algorithm):
    """Colour images of 16 x 16 in [-1, 1], a fixed function of four numbers."""

    value_range = (-1.0, 1.0)

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {"normal": lambda noise: noise.normal("z", 4)}

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        plane = torch.randn(4, 3 * 16 * 16, generator=torch.Generator().manual_seed(0))
        return (z @ plane).view(-1, 3, 16, 16).sin()


def untrained_inception(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weights file of the real layout. What the class would download is left out while it is built."""
    net = inception.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(net, "load_state_dict", lambda *a, **k: None)
        torch.manual_seed(0)
        torch.save(net("inception-v3-compat", ["2048"]).state_dict(), file)


def save_png(images: Tensor, folder: Path) -> None:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:04d}.png")


def test_scores_are_those_of_the_torch_fidelity_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, weights = 32, tmp_path / "inception.pth"
    write_images(tmp_path, (16, 16, 3), train=count)
    untrained_inception(weights, monkeypatch)
    config = make_config(
        tmp_path, "evaluate.fidelity=inception", f"evaluate.inception_weights={weights}",
        f"evaluate.fidelity_samples={count}",
    )  # fmt: skip
    painter = Painter()
    ours = score(config, painter, World(), tmp_path / "cache")
    noise = Noise.of(count, config.evaluate.seed)
    nothing: Any = None
    drawn = evaluation_of(painter, nothing, nothing, World(), config.evaluate).to_bytes(painter.sample(noise))
    save_png(drawn, tmp_path / "samples")
    images = np.array(open_split(tmp_path / "train").images)
    save_png(torch.from_numpy(images).permute(0, 3, 1, 2), tmp_path / "data")
    command = [
        sys.executable, "-m", "torch_fidelity.fidelity", "--cpu", "--json", "--silent", "--no-cache", "--isc",
        "--fid", "--kid",
        "--kid-subset-size", str(count), "--feature-extractor-weights-path", str(weights),
        "--input1", str(tmp_path / "samples"), "--input2", str(tmp_path / "data"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    names = {
        "isc": "inception_score_mean", "isc_std": "inception_score_std", "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
    }  # fmt: skip
    found = {k: ours[f"{k}/inception/normal"] for k in names}
    assert found == pytest.approx({k: theirs[name] for k, name in names.items()}, rel=1e-3)


def test_distances_compare_equal_numbers_of_images_spread_over_the_splits(digits: Path, tmp_path: Path) -> None:
    config = make_config(digits, "evaluate.fidelity=digits", "evaluate.blurred=true")
    values = score(config, build_algorithm(config, DataFacts((1, 28, 28))), World(), tmp_path)
    assert values["distance_images/digits/normal"] == values["distance_images/digits/data"] == TEST
    extractor, _ = make(config.evaluate, torch.device("cpu"))

    def features(split: str, blur: bool) -> Tensor:
        images = np.array(open_split(digits / split).images)
        chosen = images[[i for i in range(len(images)) if (i + 1) * TEST // len(images) > i * TEST // len(images)]]
        if blur:
            smooth = gaussian_filter(chosen.astype(np.float64), (0, 1, 1, 0), mode="mirror", truncate=3)
            chosen = smooth.round().astype(np.uint8)
        return extractor(torch.from_numpy(chosen).permute(0, 3, 1, 2))[0]

    for metric, blur in (("fid", False), ("fid_blurred", True)):
        expected = frechet(features("test", blur), features("train", blur))
        assert values[f"{metric}/digits/data"] == pytest.approx(expected, rel=0.1), metric  # of nearly singular ones
    assert values["mind/digits/data"] == pytest.approx(
        sliced(features("test", False), features("train", False)), rel=0.05
    )


@pytest.mark.parametrize("official", [True, False], ids=["Meta's file", "timm's file"])
def test_dinov2_features_are_the_class_token(official: bool, digits: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=518 if official else 224).eval()
    state = net.state_dict()
    if official:  # trained on larger images, with a token for masked patches
        state = {**state, "mask_token": torch.zeros(1, 384), "pos_embed": state["pos_embed"]}
    torch.save(state, tmp_path / "dinov2.pth")
    config = make_config(digits, "evaluate.fidelity=dinov2", f"evaluate.dinov2_weights={tmp_path / 'dinov2.pth'}")
    check(config.evaluate, open_split(digits / "train"))
    extractor, _ = make(config.evaluate, torch.device("cpu"))
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features, logits = extractor(images)
    assert features.shape == (2, 384) and logits.shape == (2, 0)
    if not official:
        normal = (images / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        with torch.no_grad():
            torch.testing.assert_close(features, net.forward_features(normal)[:, 0], rtol=1e-3, atol=1e-4)
    scored = measure(
        *(Features(f, f[:, :0], f[:, :0], f[:, 0]) for f in (features.repeat(4, 1), features.repeat(3, 1)))
    )
    assert "isc" not in scored and scored["fid"] == pytest.approx(0, abs=1e-2)


def on_every_rank(config: Config, cache: Path) -> dict[str, float]:
    world = start("cpu", timeout=60)
    algorithm = build_algorithm(config, DataFacts((1, 28, 28)))
    trainer = config.trainer
    distribute(algorithm, world, strategy=trainer.strategy, shard_size=None, sync_batchnorm=True)
    return score(config, algorithm, world, cache)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_find_the_scores_of_one(strategy: str, digits: Path, tmp_path: Path) -> None:
    config = make_config(digits, "evaluate.fidelity=digits", f"trainer.strategy={strategy}")
    alone = on_every_rank(config, tmp_path / "alone")
    assert {k.rpartition("/")[2] for k in alone} == {"data", "normal", "uniform"}
    for values in launch(2, on_every_rank, config, tmp_path / "two"):
        assert values == pytest.approx(alone, rel=1e-5)


def test_features_of_the_data_are_kept_for_the_same_data_and_extractor(digits: Path, tmp_path: Path) -> None:
    config = make_config(digits, "evaluate.fidelity=digits")
    algorithm = build_algorithm(config, DataFacts((1, 28, 28)))
    first = score(config, algorithm, World(), tmp_path)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert len(times) == 2
    assert score(config, algorithm, World(), tmp_path) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == times
    torch.manual_seed(1)
    other = tmp_path / "other" / "classifier.pt"
    other.parent.mkdir()
    torch.save({"weights": DigitClassifier().state_dict(), "accuracy": 0.1}, other)
    again = make_config(digits, "evaluate.fidelity=digits", f"evaluate.digit_classifier={other}")
    assert score(again, algorithm, World(), tmp_path) != first
    assert len(list(tmp_path.glob("*.pt"))) == 4


def test_a_damaged_or_unwritable_store_of_features_costs_only_time(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(digits, "evaluate.fidelity=digits")
    algorithm = build_algorithm(config, DataFacts((1, 28, 28)))
    first = score(config, algorithm, World(), tmp_path / "cache")
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert score(config, algorithm, World(), tmp_path / "cache") == first
    (tmp_path / "file").write_text("no folder")
    assert score(config, algorithm, World(), tmp_path / "file") == first
    assert "not kept" in capsys.readouterr().out


def test_the_imagenet_substitute_tells_noise_from_more_noise(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    write_images(tmp_path, (16, 16, 3))
    values = score(make_config(tmp_path, "evaluate.fidelity=imagenet"), Painter(), World(), tmp_path / "cache")
    assert values["fid/imagenet/data"] < values["fid/imagenet/normal"]
    assert 1 <= values["isc/imagenet/normal"] < 1000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.fidelity=inception", "evaluate.inception_weights=<file>"),
        ("evaluate.digit_classifier=nowhere.pt", "python -m dtrain.evaluate.classifier shards/mnist nowhere.pt"),
        ("evaluate.manipulate=[Smiling]", "evaluate.manipulate=Smiling: the data has"),
    ],
)
def test_what_an_evaluation_lacks_is_said_before_training(override: str, message: str, digits: Path) -> None:
    config = make_config(digits, "evaluate.fidelity=digits", override)
    with pytest.raises(ConfigError, match=message):
        check(config.evaluate, open_split(digits / "train"))


def test_weights_that_cannot_be_read_are_refused(digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    file.write_bytes((digits / "classifier.pt").read_bytes()[:1000])
    config = make_config(digits, "evaluate.fidelity=digits", f"evaluate.digit_classifier={file}")
    with pytest.raises(ConfigError, match="its weights cannot be read"):
        check(config.evaluate, open_split(digits / "train"))


def test_the_digit_features_are_for_digits(tmp_path: Path) -> None:
    write_images(tmp_path, (8, 8, 3))
    with pytest.raises(ConfigError, match="3 x 8 x 8"):
        check(make_config(tmp_path, "evaluate.fidelity=digits").evaluate, open_split(tmp_path / "train"))


def test_the_classifier_learns_what_digits_show(tmp_path: Path) -> None:
    """The class is the place of a square in noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 1280), ("test", 100)):
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 60, (count, 28, 28, 1), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            top, left = 9 * (label // 4) + 3, 7 * (label % 4) + 1
            image[top : top + 5, left : left + 5] = 255
        facts: dict[str, Any] = {"what": "squares", "class_names": [str(i) for i in range(10)]}
        write_split(tmp_path / split, array_source(images, labels, facts, None, split))
    assert classifier.train(tmp_path, tmp_path / "squares.pt", epochs=4) > 0.9
    stored = torch.load(tmp_path / "squares.pt", weights_only=True)
    assert stored["accuracy"] > 0.9
    write_images(tmp_path / "colour", (28, 28, 3))
    with pytest.raises(ValueError, match="no labelled digits"):
        classifier.train(tmp_path / "colour", tmp_path / "colour.pt")
