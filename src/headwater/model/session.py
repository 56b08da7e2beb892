"""A model, its tokenizer and its adapter, at a pinned revision, ready to be asked."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
import xxhash
from torch import Tensor, nn

from headwater.model.head import Head, HeadTap
from headwater.model.outputs import SessionOutputs
from headwater.types import Batch, DataError, UsageError

Task = Literal["causal-lm", "sequence-classification"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(eq=False)
class Session:
    """One loaded model. `forward` runs it on a right-padded batch; `run` wraps that for measures."""

    model: nn.Module
    tokenizer: Any
    task: Task
    name: str
    revision: str | None = None
    adapter: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.head = _plain_head(self) if self.task == "causal-lm" else None

    @property
    def network(self) -> Any:
        """The transformers model, without PEFT's wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model  # pyright: ignore[reportCallIssue]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @cached_property
    def bidirectional(self) -> bool:
        """Whether a position sees those after it (an encoder): then padding has to be masked out of the attention."""
        config = self.network.config
        return self.task == "sequence-classification" and not _is_causal(self.network) and not getattr(config, "is_decoder", False)

    @property
    def pad_id(self) -> int:
        """What fills a row's right end. Any token does for a causal model: padding is never attended to and never a target."""
        for value in (getattr(self.network.config, "pad_token_id", None), getattr(self.tokenizer, "pad_token_id", None)):
            if value is not None:
                return int(value)
        return 0

    def require_padding(self) -> None:
        """Raise unless rows of unlike lengths can stand in one batch: a causal classifier finds its last token by the padding id."""
        needed = self.task == "sequence-classification" and not self.bidirectional
        if needed and getattr(self.network.config, "pad_token_id", None) is None:
            raise UsageError(
                f"{self.name} has no padding token, and a sequence classifier needs one to find each row's last token. "
                "Set config.pad_token_id (the end-of-text id will do) and save the model again."
            )

    @property
    def max_length(self) -> int | None:
        """Positions that the model was made for, where its config says so."""
        value = getattr(self.network.config, "max_position_embeddings", None)
        return int(value) if value else None

    @property
    def hidden_size(self) -> int:
        return int(self.network.config.get_text_config().hidden_size)

    @property
    def fingerprint(self) -> str:
        """A hash over every parameter's name and bytes as they are now: another checkpoint has another. Cost: one read of the weights."""
        hasher = xxhash.xxh3_128()
        for name, parameter in sorted(self.model.named_parameters()):
            hasher.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            hasher.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return hasher.hexdigest()

    def run(self, batch: Batch, *, tap: HeadTap | None = None) -> SessionOutputs:
        return SessionOutputs(self, batch.to(self.device), tap)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(hidden states [B, T, H], logits or None where the head applies them to chosen positions only).

        Causal models get no attention mask: rows are padded on the right, so no real position sees padding, and the
        attention kernel keeps its causal fast path.
        """
        backbone = _backbone(self.network)
        if self.task == "causal-lm" and self.head is not None:
            return backbone(input_ids=batch.tokens_BT, use_cache=False).last_hidden_state, None
        seen: list[Tensor] = []
        handle = backbone.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
        try:
            logits = self.network(**self._inputs(batch)).logits
        finally:
            handle.remove()
        return seen[0], logits

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        if not self.bidirectional:
            return {"input_ids": batch.tokens_BT, "use_cache": False}
        inside = torch.arange(batch.tokens_BT.shape[1], device=batch.tokens_BT.device) < batch.lengths_B[:, None]
        return {"input_ids": batch.tokens_BT, "attention_mask": inside.long()}

    def describe(self) -> dict[str, Any]:
        """What run.json keeps: enough to load the same session again."""
        return {
            "model": self.name,
            "revision": self.revision,
            "adapter": self.adapter,
            "task": self.task,
            "dtype": str(self.dtype).removeprefix("torch."),
            "class": type(self.network).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            **self.facts,
        }


def load_session(
    model: str | Path,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    merge: bool = False,
    dtype: str = "float32",
    device: str | None = None,
    task: Task | None = None,
    trust_remote_code: bool = False,
    zero_adapter: bool = False,
    tokenizer: Any = None,
) -> Session:
    """Load a model, its tokenizer and optionally a PEFT adapter.

    `model` is a hub id or a folder; a folder that holds only an adapter brings its base model's name along. `revision` pins
    a hub id (the resolved commit is kept). `merge` folds the adapter into the weights, and then these are in scope, not it. `zero_adapter`
    sets a LoRA's B to zero: the model computes what its base does, and the directions are those of the trained A. `tokenizer` is one
    that is loaded already, for a folder without. Raises UsageError for an unknown dtype or task, DataError where the files are not what
    they claim to be.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    base, adapter = _split_adapter(str(model), None if adapter is None else str(adapter))
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = _config(base, options)
    task = task or _task(config, base)
    with _quiet():
        network = _network(base, task, dtype, options)
        loaded = network if adapter is None else _with_adapter(network, adapter, merge=merge)
        if zero_adapter:
            _zero_adapter(loaded, base)
    loaded = loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    tokenizer = tokenizer or _tokenizer(base if adapter is None else adapter, base, options)
    commit = getattr(config, "_commit_hash", None)
    return Session(
        loaded, tokenizer, task, name=base, revision=commit or revision, adapter=adapter, facts={"merged": merge and adapter is not None}
    )


def _config(base: str, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    if Path(base).is_absolute() and not Path(base).exists():
        raise UsageError(f"there is no model at {base}: the folder does not exist; check the path")
    try:
        return AutoConfig.from_pretrained(base, **options)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read a model's config from {base}{'' if Path(base).exists() else ', which is no folder here'}: {_first_line(error)} "
            "Expected a folder with config.json (as save_pretrained writes it) or a hub id."
        ) from error


def _task(config: Any, base: str) -> Task:
    names = " ".join(getattr(config, "architectures", None) or [])
    if "ForSequenceClassification" in names:
        return "sequence-classification"
    if "ForCausalLM" in names or "LMHead" in names or "ForConditionalGeneration" in names:
        return "causal-lm"
    raise UsageError(
        f"{base}: its config names {names or 'no architecture'}; say what it is with --task causal-lm or --task sequence-classification"
    )


def _network(base: str, task: Task, dtype: str, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    factory: Any = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    try:
        network, loaded = factory.from_pretrained(base, dtype=DTYPES[dtype], output_loading_info=True, **options)
    except Exception as error:  # damaged weights surface as many types: safetensors, OSError, RuntimeError, KeyError
        raise DataError(
            f"cannot load the weights of {base} as {task}: {_first_line(error)} "
            "If the files were copied or downloaded, one may be incomplete: save or download the model again."
        ) from error
    if absent := sorted([*loaded["missing_keys"], *(str(key) for key in loaded["mismatched_keys"])]):
        raise DataError(
            f"{len(absent)} weights of {base} as {task} are not in its files, or have another shape there ({', '.join(absent[:3])}): "
            "they would be random. Likely cause: an incomplete file, or the wrong --task for this model."
        )
    return network


def _split_adapter(model: str, adapter: str | None) -> tuple[str, str | None]:
    """A folder that holds an adapter only names its base model in adapter_config.json."""
    if adapter is not None or not (Path(model) / "adapter_config.json").is_file() or (Path(model) / "config.json").is_file():
        return model, adapter
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(model).base_model_name_or_path
    if not base:
        raise UsageError(f"{model} is an adapter that does not name its base model: give the base as MODEL and this folder as --adapter")
    return str(base), model


def _with_adapter(network: Any, adapter: str, *, merge: bool) -> nn.Module:
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"no PEFT adapter in {adapter}: {_first_line(error)} Expected a folder with adapter_config.json and adapter_model.safetensors."
        ) from error
    if config.is_prompt_learning:
        raise UsageError(f"{adapter} is a {config.peft_type} adapter, which learns inputs and no weights; LoRA-like adapters are supported")
    way_out = f"It was made for {config.base_model_name_or_path}; give that model, or the adapter that belongs to this one."
    try:
        wrapped = PeftModel.from_pretrained(network, adapter, is_trainable=not merge)
        missing, unexpected = _misfits(wrapped, adapter)
    except Exception as error:  # damaged weights and wrong shapes surface as many types, safetensors' own among them
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"the adapter {adapter} does not fit {type(network).__name__}, or is damaged: {reason}. {way_out}") from error
    if missing or unexpected:
        raise DataError(
            f"the adapter {adapter} does not fit {type(network).__name__}: {len(missing)} of the model's adapter weights are not in it, "
            f"{len(unexpected)} of its own have no place ({', '.join([*missing, *unexpected][:3])}). {way_out}"
        )
    return cast(Any, wrapped).merge_and_unload().requires_grad_(True) if merge else wrapped


def _zero_adapter(loaded: nn.Module, name: str) -> None:
    """Undo what an adapter learned. Only where that gives back the base model: a plain LoRA with the base's own weights under it."""
    config = next(iter(getattr(loaded, "peft_config", {}).values()), None)
    if not _is_plain_lora(config):
        found = "no adapter" if config is None else f"a {config.peft_type} adapter that changes more than by its B"
        raise UsageError(
            f"{name} has {found}: what it was before training cannot be had from it. Give the folder of the weights as they were "
            "(HeadwaterCallback(initial_weights=True) writes it), or the base model itself."
        )
    for parameter_name, parameter in loaded.named_parameters():
        if ".lora_B." in parameter_name or ".lora_embedding_B." in parameter_name:
            nn.init.zeros_(parameter)


def _is_plain_lora(config: Any) -> bool:
    if config is None or config.peft_type != "LORA" or config.use_dora or config.modules_to_save:
        return False
    return config.bias == "none" and config.init_lora_weights in (True, "gaussian", False)


def _misfits(wrapped: Any, adapter: str) -> tuple[list[str], list[str]]:
    """Adapter weights that the model wants and the file lacks, and those that the file has and the model has no place for.

    PEFT warns of the first, says nothing of the second, and leaves random numbers, or the base model, in their place.
    """
    from peft.utils import get_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    wanted, found = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False)), set(load_peft_weights(adapter, device="cpu"))
    return sorted(wanted - found), sorted(found - wanted - set(wrapped.state_dict()))


def _tokenizer(first: str, base: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    home = first if (Path(first) / "tokenizer_config.json").is_file() else base
    try:
        return AutoTokenizer.from_pretrained(home, **options)
    except (OSError, ValueError) as error:
        raise DataError(f"no tokenizer in {home}: {_first_line(error)} Save it beside the model with tokenizer.save_pretrained.") from error


def _backbone(network: Any) -> Any:
    """The part that ends in hidden states."""
    return getattr(network, network.base_model_prefix)


def _is_causal(network: Any) -> bool:
    flags = [module.is_causal for module in network.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    return any(flags)


def _plain_head(session: Session) -> Head | None:
    """The output layer, if applying it to the backbone's hidden states gives the model's own logits; else None: the model makes them.

    Checked by number, not by name: an architecture that does something more to its logits is caught here.
    """
    network = session.network
    linear = network.get_output_embeddings()
    if not isinstance(linear, nn.Linear) or not hasattr(network, network.base_model_prefix):
        return None
    config = network.config
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    head = Head(linear, scale=scale, softcap=getattr(config, "final_logit_softcapping", None))
    # tokens from all over the vocabulary: a padding token's embedding may be zero, and then every head agrees
    vocabulary = network.get_input_embeddings().weight.shape[0]
    tokens_BT = torch.linspace(0, vocabulary - 1, 6, device=session.device).long()[None]
    with torch.no_grad():
        was_training = session.model.training
        session.model.eval()
        expected = network(input_ids=tokens_BT, use_cache=False).logits
        got = head.logits(_backbone(network)(input_ids=tokens_BT, use_cache=False).last_hidden_state)
        session.model.train(was_training)
    return head if got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-3, atol=1e-5, equal_nan=True) else None


def _first_line(error: Exception) -> str:
    """What the library said, as one sentence."""
    lines = str(error).strip().splitlines()
    return f"{lines[0][:300].rstrip('.')}." if lines else f"{type(error).__name__}."


@contextmanager
def _quiet() -> Iterator[None]:
    """No reports while loading: what they warn of (weights that are missing or of another shape) is raised as an error here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
