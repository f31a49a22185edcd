"""Options of ``softprompt serve``: the adapters, the address, who may use the server, and its limits."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from .options import Options


class ServeOptions(Options):
    """The adapters, the address, who may use the server, and its limits."""

    adapter: list[str] = Field(
        [], description="An adapter to serve, as name=DIR, or as a folder or Hub id named by its last part; repeatable."
    )
    adapter_dir: Path | None = Field(
        None, description="Serve every adapter folder in this folder, under the name of its own folder."
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 for any free one.")
    api_key_file: Path | None = Field(
        None,
        description="File with the API key that clients must send. [default: the environment variable "
        "SOFTPROMPT_API_KEY, else no key]",
    )
    allowed_host: list[str] = Field(
        [], description="Further name that the Host header of a request may have; repeatable."
    )
    allowed_origin: list[str] = Field(
        [], description="Further origin, such as https://example.org, that browsers may send; repeatable."
    )
    allow_runtime_loading: Path | None = Field(
        None, description="Let clients load and unload adapters, from folders below this one."
    )
    max_body_bytes: int = Field(1 << 20, ge=1, description="Most bytes of a request.")
    body_timeout: float = Field(30.0, gt=0, description="Seconds in which a request must arrive.")
    request_timeout: float = Field(300.0, gt=0, description="Seconds after which a request that runs is given up.")
    max_queue: int = Field(1024, ge=1, description="Most texts that wait; further requests are refused for a moment.")
    max_rows: int = Field(32, ge=1, description="Most texts that are generated together.")
    max_batch_tokens: int = Field(1024, ge=1, description="Most tokens of texts that are read together.")
    max_cache_tokens: int = Field(32_768, ge=1, description="Most tokens of the KV cache of texts being generated.")
    prompt_memory: int = Field(256, ge=0, description="MiB of memory for prefilled prompts.")
    max_texts: int = Field(256, ge=1, description="Most texts of a request.")
    max_completion_tokens: int = Field(4096, ge=1, description="Most tokens of a completion.")

    @field_validator("allowed_host", "allowed_origin")
    @classmethod
    def _in_lower_case(cls, value: list[str]) -> list[str]:
        return [each.lower().rstrip("/") for each in value]
