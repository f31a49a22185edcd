"""YAML files of options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import ConfigError


def read_yaml(path: str | os.PathLike[str], *, as_written: bool = False) -> dict[str, Any]:
    """Read a YAML file of options.

    Args:
        as_written: keep scalars as text, except that an option without a value is ``None``. The option classes
            define the types; YAML itself would read the labels ``[yes, 010]`` as ``[True, 8]``.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        values = _load_as_written(text) if as_written else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} must hold lines of 'option: value'")
    return values


def _load_as_written(text: str) -> Any:
    import yaml

    null, merge = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
    by_first_letter = yaml.SafeLoader.yaml_implicit_resolvers.items()

    class Loader(yaml.SafeLoader):
        """Reads every scalar as text, except null outside a list."""

        def construct_sequence(self, node: Any, deep: bool = False) -> Any:
            for item in node.value:
                item.tag = "tag:yaml.org,2002:str" if item.tag == null else item.tag
            return super().construct_sequence(node, deep=deep)

    Loader.yaml_implicit_resolvers = {
        first: [one for one in found if one[0] in (null, merge)] for first, found in by_first_letter
    }
    return yaml.load(text, Loader)
