"""Saving, loading and sharing adapters: folders and the Hub."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from ..config.adapter_config import CONFIG_NAME, PeftConfig, PromptTuningConfig
from ..config.options import EMBEDDED_MODEL, ModelOptions, build_options
from ..data.task import TASK_NAME
from ..errors import AdapterError, AdapterMismatchError, BaseModelError, ConfigError
from ..inference.load_adapter import read_adapter
from ..models.loading import load_base
from ..models.vocabulary import enlarged, grow, own_tokenizer, restore
from ..reporting.folder import CARD_NAME, write_card
from ..reporting.merge import update_card
from ..storage import adapter as files
from ..storage.atomic import inside, write_text
from ..storage.record import (
    CONFUSION_PICTURE,
    ENSEMBLE_NAME,
    LOSS_PICTURE,
    METRICS_NAME,
    OLD_PROBE_NAME,
    PROBE_NAME,
    STATE_NAME,
    TRAIN_METRICS_NAME,
)
from .model import PeftModel, PeftModelForCausalLM
from .state import set_peft_model_state_dict

TRAINER_WEIGHTS_NAME = "model.safetensors"
SHARED = [
    files.WEIGHTS_NAME,
    files.START_NAME,
    PROBE_NAME,
    OLD_PROBE_NAME,
    ENSEMBLE_NAME,
    CONFIG_NAME,
    TASK_NAME,
    CARD_NAME,
    METRICS_NAME,
    TRAIN_METRICS_NAME,
    STATE_NAME,
    LOSS_PICTURE,
    CONFUSION_PICTURE,
]
"""What ``push`` uploads of a folder: no checkpoints, no options with the paths of this machine, no data."""


def save_adapters(
    model: PeftModel,
    folder: Path,
    safe_serialization: bool,
    selected_adapters: list[str] | None,
    is_main_process: bool,
    from_trainer: bool,
) -> None:
    """What ``PeftModel.save_pretrained`` does.

    Raises:
        ConfigError: the path is a file, a name is unknown, or a pickle is asked for.
    """
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; adapters are saved into a folder")
    if not safe_serialization:
        raise ConfigError("safe_serialization=False would write a pickle; softprompt writes safetensors only")
    names = list(model.peft_config) if selected_adapters is None else selected_adapters
    unknown = [name for name in names if name not in model.peft_config]
    if unknown:
        raise ConfigError(f"there is no adapter called {unknown[0]!r}; there is {', '.join(model.peft_config)}")
    if not is_main_process:
        return
    for name in names:
        target = folder if name == "default" else inside(folder, name)
        target.mkdir(parents=True, exist_ok=True)
        config = model.peft_config[name]
        assert isinstance(config, PromptTuningConfig)
        if config.base_model_name_or_path is None:
            config.base_model_name_or_path = getattr(model.base_model, "name_or_path", None) or None
        beside = enlarged(model.base_model, config.base_model_name_or_path, config.revision)
        prompt = model.get_prompt_embedding_to_save(name)
        files.write_prompt(target, prompt, placement=config.prompt_placement, beside=beside)
        replace(config, inference_mode=True).save_pretrained(target)
        if from_trainer and "peft" not in sys.modules:
            # Trainer without PEFT looks for the best weights under this name only: the same 33 kB again.
            shutil.copyfile(target / files.WEIGHTS_NAME, target / TRAINER_WEIGHTS_NAME)
    if (folder / CONFIG_NAME).is_file():
        write_card(folder)


def update_model_card(model: PeftModel, folder: Path) -> None:
    """What ``PeftModel.create_or_update_model_card`` does."""
    config = model.active_peft_config
    base = config.base_model_name_or_path or getattr(model.base_model, "name_or_path", None) or None
    folder.mkdir(parents=True, exist_ok=True)
    write_card(folder, config=replace(config, base_model_name_or_path=base).to_dict())


def load_model(
    model: PreTrainedModel,
    model_id: str | os.PathLike[str],
    adapter_name: str,
    is_trainable: bool,
    config: PeftConfig | None,
    **hub: Any,
) -> PeftModelForCausalLM:
    """What ``PeftModel.from_pretrained`` does."""
    if config is not None and not isinstance(config, PeftConfig):
        raise ConfigError(f"config must be a PeftConfig, not {type(config).__name__}")
    config, prompt = read_adapter(model, model_id, config, **hub)
    restore(model, files.find_weights(model_id, **hub), str(model_id))
    config.inference_mode = True  # no start is drawn, and no tokenizer is needed to load
    wrapped = PeftModelForCausalLM(model, config, adapter_name)
    set_peft_model_state_dict(wrapped, {files.key_of(config.prompt_placement): prompt}, adapter_name)
    _finish(wrapped, adapter_name, is_trainable)
    return wrapped


def load_into(
    model: PeftModel, model_id: str | os.PathLike[str], adapter_name: str, is_trainable: bool, **hub: Any
) -> Any:
    """What ``PeftModel.load_adapter`` does."""
    weights = files.find_weights(model_id, **hub)
    restore(model.base_model, weights, str(model_id), shared=True)
    if adapter_name in model.peft_config:
        placement = files.placement_of(model.peft_config[adapter_name])
        prompt = files.read_prompt(weights, placement)
        result = set_peft_model_state_dict(model, {files.key_of(placement): prompt}, adapter_name)
        if is_trainable:
            model.peft_config[adapter_name].inference_mode = False
            model.set_adapter(model.active_adapter)
        else:
            model.eval()
        return result
    config, prompt = read_adapter(model.base_model, model_id, **hub)
    config.inference_mode = True
    model.add_adapter(adapter_name, config)
    result = set_peft_model_state_dict(model, {files.key_of(config.prompt_placement): prompt}, adapter_name)
    _finish(model, adapter_name, is_trainable)
    return result


def _finish(model: PeftModel, adapter_name: str, is_trainable: bool) -> None:
    """Thaw or freeze a freshly loaded prompt."""
    model.peft_config[adapter_name].inference_mode = not is_trainable
    model.set_adapter(model.active_adapter)
    if not is_trainable:
        model.eval()


def push_model(
    model: PeftModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    use_auth_token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    **_: Any,
) -> Any:
    """What ``PeftModel.push_to_hub`` does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        write_card(folder, repo_id)
        return push_folder(
            folder,
            repo_id,
            commit_message=commit_message or "Upload soft prompt",
            commit_description=commit_description,
            private=private,
            token=token if token is not None else use_auth_token,
            revision=revision,
            create_pr=create_pr,
        )


def push_adapter(folder: Path, repo_id: str, *, private: bool, revision: str | None, commit_message: str) -> str:
    """Upload a finished adapter folder, without its checkpoints; returns the address of the repository.

    Raises:
        AdapterError: the folder is not an adapter, or is damaged.
        AdapterError: the Hub cannot be reached, or refuses.
    """
    if not folder.is_dir():
        raise AdapterError(f"there is no folder {folder}; give the folder of an adapter")
    config = files.read_config(folder)
    files.read_prompt(files.find_weights(folder), config.prompt_placement)
    write_card(folder, repo_id)
    commit = {"commit_message": commit_message, "revision": revision, "create_pr": False}
    info = push_folder(folder, repo_id, private=private, token=None, allow_patterns=SHARED, **commit)
    return str(info.repo_url)


def push_folder(folder: Path, repo_id: str, *, private: bool | None, token: bool | str | None, **commit: Any) -> Any:
    """Upload a folder to a repository of the Hub, which is created if need be; returns its ``CommitInfo``.

    Raises:
        AdapterError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if commit.get("revision") and not commit["create_pr"]:
            api.create_branch(repo_id, branch=commit["revision"], exist_ok=True)
        _keep_card(api, repo_id, folder, commit.get("revision"))
        # What decided beside an older prompt must not beside this one; files that are uploaded again are spared.
        older = [PROBE_NAME, OLD_PROBE_NAME, ENSEMBLE_NAME]
        return api.upload_folder(repo_id=repo_id, folder_path=folder, delete_patterns=older, **commit)
    except Exception as error:  # beside its own errors, those of its HTTP library, whichever that is
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise AdapterError(
            f"cannot upload to {repo_id}: {reason}. Check the name, the network and your log-in (hf auth login)"
        ) from error


def _keep_card(api: Any, repo_id: str, folder: Path, revision: str | None) -> None:
    """Put our fresh card into the README that the repository has."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    card = folder / CARD_NAME
    try:
        there = Path(api.hf_hub_download(repo_id, card.name, revision=revision)).read_text(encoding="utf-8")
    except LocalEntryNotFoundError:
        raise  # not reached: then nobody knows what is there
    except EntryNotFoundError:
        return
    write_text(card, update_card(there, card.read_text(encoding="utf-8")))


class AutoPeftModelForCausalLM:
    """Loads an adapter together with the base model that its config names."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> PeftModelForCausalLM:
        """Load the base model, then the adapter onto it.

        The base's embeddings are resized to those in the adapter's file or, as in PEFT, to the tokenizer beside the
        adapter if that has more tokens.

        Args:
            revision: of the adapter's repository; the base model's revision is in the adapter's config.
            **kwargs: ``subfolder``, ``token``, ``cache_dir``, ``local_files_only`` for the adapter; what
                else there is goes to ``AutoModelForCausalLM.from_pretrained`` (``dtype``, ``device_map``).

        Raises:
            AdapterError: there is no adapter, it is damaged, or it does not say what its base model is.
            BaseModelError: the base model cannot be had.
        """
        hub: dict[str, Any] = {
            k: kwargs.pop(k) for k in ("subfolder", "token", "cache_dir", "local_files_only") if k in kwargs
        }
        hub["revision"] = revision
        found = config or files.read_config(pretrained_model_name_or_path, **hub)
        if not found.base_model_name_or_path:
            raise AdapterMismatchError(
                f"{pretrained_model_name_or_path} does not say what base model it is for; load that yourself and "
                "use PeftModel.from_pretrained(model, ...)"
            )
        name = found.base_model_name_or_path
        if name == EMBEDDED_MODEL or name.endswith(".gguf"):
            known = {
                k: str(v).removeprefix("torch.") for k, v in kwargs.items() if k in ("dtype", "attn_implementation")
            }
            base = load_base(build_options(ModelOptions, {"model_name_or_path": name, "device": "cpu", **known})).model
        else:
            try:
                base = AutoModelForCausalLM.from_pretrained(name, revision=found.revision, **kwargs)
            except OSError as error:
                reason = str(error).strip().split("\n")[0]
                raise BaseModelError(f"the base model {name} cannot be had: {reason}") from error
        adapter, code = str(pretrained_model_name_or_path), kwargs.get("trust_remote_code", False)
        outside = {name: value for name, value in hub.items() if name != "subfolder"}  # where PEFT looks for it
        tokenizer = own_tokenizer(adapter, trust_remote_code=code, **outside)
        grow(base, files.find_weights(adapter, **hub), tokenizer)
        return load_model(base, pretrained_model_name_or_path, adapter_name, is_trainable, config, **hub)
