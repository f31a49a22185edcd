"""Advice on options of ``transformers.TrainingArguments`` and of common training scripts that do not exist here."""

from __future__ import annotations

_DTYPE = "dtype=bfloat16 or dtype=float16 sets the dtype of the base model; the prompt is always float32"
_OPTIMIZER = "the optimiser is always AdamW (learning_rate, weight_decay, adam_beta1, adam_beta2, adam_epsilon)"
_ONE_PROCESS = "a run is one process on one device; dtype=bfloat16 halves the memory of the base model"
_ROWS = "rows are tokenised once and kept in memory, so there is no data loader to configure"
_LOG = "training metrics go to log.jsonl in output_dir every logging_steps; no other tracker is supported"
_PUSH = "upload the finished folder with: softprompt push OUTPUT_DIR OWNER/NAME"
_METRICS = "accuracy, macro-F1 and loss are always computed; softprompt evaluate scores further rows"
_KERNELS = "the engine has its own kernels for frozen base models"
_LESS_MEMORY = "lower tokens_per_pack for less memory; the result is the same"
_CHECKPOINTS = "checkpoints are always complete, a few kilobytes in size, in safetensors"
_RESUME = "a resumed run always continues with the next batch"
_SCREEN = "the progress bar appears only on a terminal; redirect the output to silence the rest"
_NO_PADDING = "rows are packed without padding, so their order by length does not matter"
_HALF = "quantised loading is not supported; dtype=bfloat16 halves the memory"

_WHY: dict[str, tuple[str, ...]] = {
    _DTYPE: ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "fp16_opt_level", "half_precision_backend",
             "fp16_backend", "torch_dtype", "mixed_precision"),
    "float32 matrix products keep full precision; use dtype=bfloat16 for speed": ("tf32",),
    _OPTIMIZER: ("optim", "optim_args", "optim_target_modules", "optimizer", "adafactor"),
    "lr_scheduler_type and warmup_steps define the whole schedule": ("lr_scheduler_kwargs",),
    "to reduce overfitting, raise weight_decay or lower num_train_epochs": (
        "label_smoothing_factor", "neftune_noise_alpha"),
    "use gradient_checkpointing, which has no further options": (
        "gradient_checkpointing_kwargs", "activation_checkpointing", "activation_checkpointing_kwargs"),
    _KERNELS: ("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel",
               "liger_kernel_config", "torchdynamo", "jit_mode_eval", "use_ipex"),
    "the KV cache is used automatically where it saves work": ("use_cache",),
    _LESS_MEMORY: ("auto_find_batch_size", "torch_empty_cache_steps", "eval_accumulation_steps"),
    _LOG: ("report_to", "logging_dir", "logging_strategy", "run_name", "project", "trackio_space_id",
           "trackio_bucket_id", "trackio_static_space_id", "log_on_each_node"),
    "logging_steps=1 logs every step": ("logging_first_step",),
    "a non-finite loss stops the run and keeps the last good prompt": ("logging_nan_inf_filter",),
    "trainer_state.json has steps and epochs, metrics.json has rows per second": (
        "include_num_input_tokens_seen", "include_tokens_per_second"),
    _SCREEN: ("log_level", "log_level_replica", "disable_tqdm"),
    "--debug on the command line shows the traceback of an error": ("debug",),
    "evaluation follows eval_strategy from the start": ("eval_delay",),
    "the option baselines scores the untuned prompt on the test rows": ("eval_on_start",),
    _METRICS: ("prediction_loss_only", "include_for_metrics", "include_inputs_for_metrics", "batch_eval_metrics",
               "eval_do_concat_batches", "eval_use_gather_object"),
    _CHECKPOINTS: ("save_only_model", "save_safetensors", "save_on_each_node", "enable_jit_checkpoint"),
    _PUSH: ("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
            "hub_revision", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token"),
    "metric_for_best_model implies it: lower is better for the loss, higher for the others": ("greater_is_better",),
    "early stopping is not supported; load_best_model_at_end keeps the prompt of the best validation": (
        "early_stopping_patience", "early_stopping_threshold", "early_stopping"),
    _RESUME: ("ignore_data_skip", "restore_callback_states_from_checkpoint"),
    "seed also sets the order of rows": ("data_seed",),
    "use device=cpu": ("use_cpu", "no_cuda"),
    "use device=mps": ("use_mps_device",),
    _ONE_PROCESS: ("accelerator_config", "parallelism_config", "average_tokens_across_devices", "fsdp", "fsdp_config",
                   "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap", "deepspeed", "ddp_backend",
                   "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph",
                   "ddp_timeout", "local_rank", "tpu_num_cores", "tpu_metrics_debug", "ray_scope", "device_map",
                   "dispatch_batches", "split_batches", "mp_parameters"),
    _ROWS: ("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
            "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order",
            "preprocessing_num_workers", "overwrite_cache", "streaming"),
    "the last, smaller batch of an epoch is always used": ("dataloader_drop_last",),
    "columns that the template does not name are ignored": ("remove_unused_columns",),
    "use label_column": ("label_names", "label_column_name", "label_name"),
    _NO_PADDING: ("train_sampling_strategy", "group_by_length", "length_column_name", "pad_to_max_length", "packing"),
    "measure memory with: softprompt benchmark speed train": ("skip_memory_metrics",),
    "softprompt train always trains, and evaluates on the validation and test rows that it finds": (
        "do_train", "do_eval"),
    "label new rows with: softprompt predict": ("do_predict",),
    "the tokenizer is that of the base model": ("tokenizer_name", "tokenizer_name_or_path", "use_fast_tokenizer"),
    "the environment variable HF_HOME sets the folder of the Hub's cache": ("cache_dir",),
    _HALF: ("load_in_8bit", "load_in_4bit", "quantization_config"),
    "softprompt only does prompt tuning": ("peft_type", "use_peft", "lora_r", "lora_alpha"),
}  # fmt: skip
_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "eval_strategy": ("evaluation_strategy",),
    "max_steps": ("max_train_steps", "num_train_steps", "steps"),
    "num_train_epochs": ("epochs", "num_epochs", "train_epochs"),
    "per_device_train_batch_size": ("batch_size", "train_batch_size", "per_gpu_train_batch_size"),
    "per_device_eval_batch_size": ("eval_batch_size", "per_gpu_eval_batch_size"),
    "learning_rate": ("lr",),
    "warmup_steps": ("num_warmup_steps",),
    "lr_scheduler_type": ("lr_scheduler", "scheduler"),
    "max_grad_norm": ("gradient_clipping", "clip_grad"),
    "max_length": ("max_seq_length", "max_seq_len", "block_size", "max_source_length", "model_max_length"),
    "model_name_or_path": ("model", "model_name", "base_model", "base_model_name_or_path"),
    "revision": ("model_revision",),
    "dataset_name": ("dataset",),
    "text_column": ("text_column_name", "text_column_names", "input_column"),
    "num_virtual_tokens": ("virtual_tokens", "prompt_length", "num_tokens"),
    "prompt_tuning_init_text": ("init_text",),
    "output_dir": ("output", "out_dir"),
}
ABSENT = {name: why for why, names in _WHY.items() for name in names} | {
    name: f"it is called {ours} here" for ours, names in _OTHER_NAMES.items() for name in names
}
"""Name of an option -> what to do instead."""


def absent(name: str) -> str | None:
    """Advice on an option that does not exist; ``None`` if there is none."""
    why = ABSENT.get(name)
    return why and f"there is no option {name}: {why}"
