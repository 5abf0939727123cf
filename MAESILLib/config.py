"""Configuration: frozen dataclasses, presets, TOML files in which an unknown key is an error."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MAESILLib.errors import InputError

Triple = tuple[int, int, int]
Window = tuple[float, float]

STRATEGY_NAMES = ("dual", "uniform", "product", "tube", "group", "block", "none")
"""The masks of :mod:`MAESILLib.masking`, named here because that module needs torch."""


COVERAGE_NAMES = ("single", "complete")
PRECISIONS = ("auto", "fp32", "bf16")
PARALLEL = ("ddp", "fsdp")


@dataclass(frozen=True)
class Preprocessing:
    """How a CT becomes the model's input."""

    spacing_mm: float = 1.5
    """Isotropic voxel size of the model's grid."""
    window_hu: Window = (-1000.0, 1000.0)
    """HU values mapped to 0 and 1; what lies beyond is clipped."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network. Sizes are voxels (D, H, W)."""

    superpatch_size: Triple = (128, 128, 128)
    patch_size: Triple = (8, 8, 8)
    encoder_width: int = 320
    encoder_depth: int = 8
    decoder_width: int = 192
    decoder_depth: int = 3
    head_width: int = 64
    """Width of one attention head in both halves."""
    mlp_ratio: float = 4.0
    """Inner width of an MLP over its outer width."""
    prior: bool = True
    """Predict hidden patches as a residual over the leak-free prior."""
    context_margin: int = 0
    """With the prior: voxels around a hidden patch that its query sees of the prior."""
    mixing_depth: int = 1
    """3x3x3 convolutions between neighbouring tokens after the decoder."""
    local_channels: tuple[int, ...] = (16, 48)
    """With the prior: channels of the convolutional branch at half, quarter, ... resolution; empty: no branch."""
    direct_head: bool = True
    """Auto-encode from the encoder's full width too, and start it at the lowest cosines of a patch."""


BEFORE_LOCAL_BRANCH: dict[str, Any] = {"mixing_depth": 0, "local_channels": (), "direct_head": False}
"""What a checkpoint lacks that was written before these keys existed: the parts they switch on."""


@dataclass(frozen=True)
class MaskTraining:
    """Which masks training draws; each batch has one strategy and one ratio, so its shapes are fixed."""

    strategies: tuple[str, ...] = ("dual", "dual", "uniform", "product")
    """Drawn from at random; a name that stands twice is drawn twice as often."""
    hidden_shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.5, 0.75, 0.75, 0.75, 0.9)
    """Shares of hidden tokens drawn from; split evenly between the plane and the axis step."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, sampling and logging. Steps count optimiser updates."""

    steps: int = 20000
    batch_size: int = 8
    """Superpatches of one update, over all ranks and passes."""
    accumulation: int = 1
    """Passes of each rank that share out an update where it does not fit at once; the result is the same."""
    parallel: str = "ddp"
    """With several ranks: ddp (a whole model on each) or fsdp (a part on each, for models that do not fit)."""
    crop_size: Triple = (128, 128, 128)
    """Voxels of a training superpatch; smaller than the model's trains faster, at a random place of its grid."""
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_share: float = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    visible_share: float = 0.25
    """Share of the visible tokens that are decoded too, which trains auto-encoding."""
    visible_weight: float = 4.0
    """Weight of their loss."""
    gradient_weight: float = 0.1
    """Weight of the squared error of steps between neighbouring voxels of the composite."""
    ssim_weight: float = 0.1
    """Weight of 1 - SSIM of the composite, in the last part of the training."""
    ssim_from: float = 0.75
    """Share of the steps after which that part begins."""
    noise: float = 0.02
    """Largest standard deviation of the noise added to the input (intensities 0 to 1); the target is clean."""
    flip: bool = True
    scale_jitter: float = 0.1
    """Largest relative change of contrast."""
    shift_jitter: float = 0.02
    """Largest shift of the intensities."""
    volume_weighting: float = 0.5
    """A volume is drawn with its voxel count to this power: 0 all alike, 1 by size."""
    min_foreground: float = 0.2
    """Least share of a crop's voxels above -500 HU; poorer crops are drawn again."""
    precision: str = "auto"
    """auto (bf16 on CUDA, fp32 elsewhere), fp32 or bf16."""
    compile: bool = False
    """torch.compile the blocks of the network, the prior, the augmentation and the loss."""
    device_volumes: float = 0.25
    """Largest share of a card's free memory that the volumes may take; larger sets are read from disk."""
    loader_threads: int = 4
    """Threads that read crops where the volumes do not lie on the device."""
    validation_share: float = 0.1
    """Share of the patients held out, where the cache names no validation split."""
    validate_every: int = 1000
    validation_superpatches: int = 16
    """Superpatches of the validation set, spread over its volumes, measured with masks on."""
    preview_at: int = 50
    """Step of the first preview picture; later ones come with each validation."""
    checkpoint_every: int = 500
    log_every: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Config:
    """Everything a training run depends on, apart from its data."""

    preset: str = "small"
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskTraining = field(default_factory=MaskTraining)
    train: TrainConfig = field(default_factory=TrainConfig)


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "model": {
            "superpatch_size": (64, 64, 64),
            "encoder_width": 96,
            "encoder_depth": 2,
            "decoder_width": 64,
            "decoder_depth": 1,
            "head_width": 32,
        },
        "train": {"steps": 200, "batch_size": 2, "crop_size": (64, 64, 64), "validate_every": 100},
    },
    "small": {},
    "base": {
        "model": {
            "encoder_width": 768,
            "encoder_depth": 6,
            "decoder_width": 128,
            "decoder_depth": 3,
            "head_width": 128,
            "mlp_ratio": 2.0,
            "context_margin": 2,
            "mixing_depth": 0,
            "local_channels": (),
            "direct_head": False,
        },
    },
    "paper": {
        "model": {
            "encoder_width": 768,
            "encoder_depth": 6,
            "decoder_width": 128,
            "decoder_depth": 3,
            "head_width": 128,
            "mlp_ratio": 2.0,
            "prior": False,
            "mixing_depth": 0,
            "local_channels": (),
            "direct_head": False,
        },
        "mask": {"strategies": ("dual",), "hidden_shares": (0.75,)},
        "train": {
            "visible_share": 0.0,
            "visible_weight": 0.0,
            "gradient_weight": 0.0,
            "ssim_weight": 0.0,
            "noise": 0.0,
        },
    },
}


def preset(name: str) -> Config:
    """Return the configuration of a preset.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset '{name}'", f"choose one of {', '.join(PRESETS)}")
    return from_dict({"preset": name})


def load(path: Path | str | None, preset_name: str | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Read a TOML file over a preset.

    Args:
        path: the file, or None for the preset alone. Its sections are those of :class:`Config`.
        preset_name: the preset to start from; overrules the file's ``preset``.
        overrides: nested values that overrule the file's.

    Raises:
        InputError: the file cannot be read, or holds an unknown key or a value of a wrong kind.
    """
    values: dict[str, Any] = {}
    where = "the configuration"
    if path is not None:
        where = str(path)
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}", "check the path") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not valid TOML: {error}", "correct the line") from None
    if preset_name is not None:
        values["preset"] = preset_name
    return from_dict(_merged(values, overrides or {}), where)


def from_dict(values: dict[str, Any], where: str = "the configuration") -> Config:
    """Build a configuration from nested values over the preset they name.

    Raises:
        InputError: an unknown key or preset, or a value of a wrong kind.
    """
    name = values.get("preset", "small")
    if name not in PRESETS:
        raise InputError(f"unknown preset '{name}' in {where}", f"choose one of {', '.join(PRESETS)}")
    config = _build(Config, _merged(PRESETS[name], {**values, "preset": name}), where, "")
    check(config, where)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Return the dataclass as nested dictionaries of plain JSON values."""
    return {
        key: to_dict(value) if dataclasses.is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for key, value in ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    }


def model_from_dict(values: dict[str, Any], where: str) -> ModelConfig:
    """Build a model configuration from all its values, as a checkpoint holds them."""
    if not BEFORE_LOCAL_BRANCH.keys() & values.keys():
        values = BEFORE_LOCAL_BRANCH | values
    _require_all(ModelConfig, values, where)
    return _build(ModelConfig, values, where, "model.")


def preprocessing_from_dict(values: dict[str, Any], where: str) -> Preprocessing:
    """Build a preprocessing configuration from all its values, as a checkpoint holds them."""
    _require_all(Preprocessing, values, where)
    return _build(Preprocessing, values, where, "preprocessing.")


def _require_all(cls: type, values: dict[str, Any], where: str) -> None:
    missing = sorted({f.name for f in dataclasses.fields(cls)} - set(values))
    if missing:
        raise InputError(f"{where} does not say its {missing[0]}", "it is incomplete; get it again")


def check(config: Config, where: str = "the configuration") -> None:
    """Raise InputError for values that contradict each other or lie out of range."""
    check_model(config.model, where)
    check_preprocessing(config.preprocessing, where)
    check_sizes(config.train.crop_size, config.model.patch_size)
    model, mask, train = config.model, config.mask, config.train
    counts = ["steps", "batch_size", "accumulation", "validate_every", "checkpoint_every", "log_every"]
    counts += ["validation_superpatches", "loader_threads"]
    shares = ["warmup_share", "visible_share", "validation_share", "min_foreground", "ema_decay", "scale_jitter"]
    shares += ["device_volumes", "ssim_from"]
    amounts = ["learning_rate", "final_learning_rate", "weight_decay", "visible_weight", "gradient_weight", "noise"]
    amounts += ["shift_jitter", "volume_weighting", "preview_at", "ssim_weight"]
    _refuse(
        where,
        (
            any(c > s for c, s in zip(train.crop_size, model.superpatch_size, strict=True)),
            f"train.crop_size {train.crop_size} exceeds model.superpatch_size {model.superpatch_size}",
        ),
        (train.precision not in PRECISIONS, f"train.precision is '{train.precision}'; know {', '.join(PRECISIONS)}"),
        (train.parallel not in PARALLEL, f"train.parallel is '{train.parallel}'; know {', '.join(PARALLEL)}"),
        *((getattr(train, name) < 1, f"train.{name} starts at 1") for name in counts),
        *((not 0 <= getattr(train, name) <= 1, f"train.{name} lies between 0 and 1") for name in shares),
        *((not 0 <= getattr(train, name) < math.inf, f"train.{name} is at least 0") for name in amounts),
        (not train.gradient_clip > 0, "train.gradient_clip is above 0"),
        (any(not 0 <= beta < 1 for beta in train.betas), "train.betas lie between 0 and 1"),
        (
            max(mask.hidden_shares, default=0) == 0 and train.visible_share == 0,
            "mask.hidden_shares and train.visible_share leave nothing to train on",
        ),
        (not mask.strategies or not mask.hidden_shares, "mask.strategies and mask.hidden_shares need an entry"),
        (any(not 0 <= r <= 0.95 for r in mask.hidden_shares), "mask.hidden_shares lie between 0 and 0.95"),
        (
            any(s not in STRATEGY_NAMES for s in mask.strategies),
            f"mask.strategies are {mask.strategies}; know {', '.join(STRATEGY_NAMES)}",
        ),
    )


def check_model(model: ModelConfig, where: str) -> None:
    """Raise InputError for a network that cannot be built."""
    check_sizes(model.superpatch_size, model.patch_size)
    # the branch halves a patch once for each of its channels, and windows overlap by four voxels
    halving = 2 ** max(2, len(model.local_channels))
    depths, widths = ("encoder_depth", "decoder_depth", "head_width"), ("encoder_width", "decoder_width")
    _refuse(
        where,
        *((not 1 <= getattr(model, name) <= 1024, f"model.{name} lies between 1 and 1024") for name in depths),
        # two for each axis of a position
        *((not 6 <= getattr(model, name) <= 16384, f"model.{name} lies between 6 and 16384") for name in widths),
        (not 0 < model.mlp_ratio <= 64, "model.mlp_ratio lies between 0 and 64"),
        (not 0 <= model.mixing_depth <= 1024, "model.mixing_depth lies between 0 and 1024"),
        (any(not 1 <= c <= 4096 for c in model.local_channels), "model.local_channels lie between 1 and 4096"),
        (
            bool(model.local_channels) and any(p % halving for p in model.patch_size),
            f"model.patch_size {model.patch_size} is not a multiple of {halving}, as model.local_channels needs",
        ),
        (not 0 <= model.context_margin <= 64, "model.context_margin lies between 0 and 64"),
        (max(model.superpatch_size) > 4096, "model.superpatch_size is at most 4096"),
    )
    _refuse(
        where,
        *(
            (getattr(model, n) % model.head_width != 0, f"model.{n} is not a multiple of model.head_width")
            for n in widths
        ),
    )


def check_sizes(superpatch_size: Triple, patch_size: Triple) -> None:
    """Raise InputError unless every superpatch side is a positive multiple of the patch side."""
    for s, p in zip(superpatch_size, patch_size, strict=True):
        if p < 1 or s < p or s % p:
            raise InputError(
                f"superpatch {superpatch_size} is not a multiple of patch {patch_size}",
                "choose sizes that divide on every axis",
            )


def check_preprocessing(preprocessing: Preprocessing, where: str) -> None:
    """Raise InputError for a grid or a window that no CT has."""
    low, high = preprocessing.window_hu
    _refuse(
        where,
        (not 0.05 <= preprocessing.spacing_mm <= 20, "preprocessing.spacing_mm lies between 0.05 and 20"),
        (not -32768 <= low < high <= 32767, "preprocessing.window_hu rises, within the range of 16-bit numbers"),
    )


def _refuse(where: str, *problems: tuple[bool, str]) -> None:
    for is_wrong, message in problems:
        if is_wrong:
            raise InputError(f"{message} ({where})", "change the value")


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _build(cls: type, values: dict[str, Any], where: str, prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise InputError(f"'{prefix[:-1]}' in {where} is not a section", f"write [{prefix[:-1]}]")
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known keys: {', '.join(hints)}"
            raise InputError(f"unknown key '{prefix}{key}' in {where}", hint)
    arguments = {key: _convert(value, hints[key], where, prefix + key) for key, value in values.items()}
    return cls(**arguments)


def _convert(value: Any, hint: Any, where: str, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _build(hint, value, where, name + ".")  # type: ignore[arg-type]
    origin = typing.get_origin(hint)
    if origin is tuple:
        kinds = typing.get_args(hint)
        if isinstance(value, list | tuple):
            if len(kinds) == 2 and kinds[1] is Ellipsis:
                return tuple(_convert(v, kinds[0], where, name) for v in value)
            if len(value) == len(kinds):
                return tuple(_convert(v, kind, where, name) for v, kind in zip(value, kinds, strict=True))
        raise InputError(f"'{name}' in {where} is {value!r}", f"write a list of {len(kinds)} values")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to Python, not to a reader of the file
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise InputError(f"'{name}' in {where} is {value!r}", f"write a {hint.__name__}")
    return value
