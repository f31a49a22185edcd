"""Everything softprompt raises on purpose.

::

    SoftPromptError
    ├── ConfigError        (ValueError)    an option or a config field has a value that cannot work
    │   └── ContextLengthError               a text and what is to be generated exceed the model's context
    ├── DataError          (ValueError)    a data file, column, row, label or template is wrong
    ├── BaseModelError     (ValueError)    the base model cannot be had, or is of a kind we refuse
    ├── AdapterError       (ValueError)    an adapter folder is missing, damaged, unsafe or of another kind
    │   ├── AdapterMismatchError (RuntimeError)  it is sound, but does not fit this base model or slot
    │   └── UnknownAdapterError  (KeyError)      a prompt library has no adapter of this name
    ├── TrainingError      (RuntimeError)  training cannot go on (a loss that is not finite, ...)
    └── MissingExtraError  (ImportError)   an optional dependency is absent; the message installs it

A message is one line: what was given, what is wrong with it, what to do. The command line prints
that line and exits with status 2; the library lets the exception through. Classes also derive from
the built-in that PEFT raises in the same place, so existing ``except`` clauses keep working.
"""

from __future__ import annotations


class SoftPromptError(Exception):
    """Base class of all errors that softprompt raises on purpose."""


class ConfigError(SoftPromptError, ValueError):
    """An option or config field has a value that cannot work."""


class ContextLengthError(ConfigError):
    """A text, and the tokens to generate after it, exceed the base model's context."""


class DataError(SoftPromptError, ValueError):
    """A data file, column, row, label or template is wrong."""


class BaseModelError(SoftPromptError, ValueError):
    """The base model cannot be found or loaded, or is of a kind that prompt tuning does not fit."""


class AdapterError(SoftPromptError, ValueError):
    """An adapter folder is missing, damaged, unsafe or not a prompt-tuning adapter."""


class AdapterMismatchError(AdapterError, RuntimeError):
    """A sound adapter that does not fit the base model or the adapter slot it is loaded into."""


class UnknownAdapterError(AdapterError, KeyError):
    """A prompt library has no adapter of this name."""

    __str__ = Exception.__str__  # KeyError shows the repr of its message


class TrainingError(SoftPromptError, RuntimeError):
    """Training cannot continue."""


class MissingExtraError(SoftPromptError, ImportError):
    """An optional dependency is absent."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}; install it with: pip install 'softprompt[{extra}]'")
