"""``softprompt push DIR OWNER/NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .show import console, working


def command(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.")],
    repo_id: Annotated[str, typer.Argument(help="Repository on the Hub (owner/name); created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to upload to.")] = None,
    commit_message: Annotated[str, typer.Option("--commit_message")] = "Upload soft prompt",
) -> None:
    """Upload an adapter folder to the Hub."""
    with working(f"uploading to {repo_id} ..."):
        from ..peft.push import push_adapter

        info = push_adapter(adapter, repo_id, private=private, revision=revision, commit_message=commit_message)
    console.print(str(info), soft_wrap=True)
