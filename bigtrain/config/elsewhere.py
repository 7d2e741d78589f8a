"""What settings are called in other trainers: `batch_size` is no typo, and near to nothing here.

The names are the Hugging Face Trainer's, Lightning's, torchtitan's, LitGPT's, NeMo's and Axolotl's.
"""

from __future__ import annotations

HERE = {
    "trainer.global_batch_size": "batch_size train_batch_size global_batch gbs gradient_accumulation_steps "
    "accumulate_grad_batches grad_accum",
    "trainer.micro_batch_size": "per_device_train_batch_size per_device_batch_size device_batch_size local_batch_size "
    "micro_batch mbs train_micro_batch_size_per_gpu",
    "trainer.max_steps": "steps max_iters num_steps train_steps training_steps total_steps train_iters",
    "trainer.epochs": "num_epochs num_train_epochs max_epochs n_epochs",
    "trainer.max_tokens": "tokens num_tokens train_tokens token_budget",
    "trainer.log_every": "logging_steps log_interval log_freq log_every_n_steps",
    "trainer.eval_every": "eval_steps eval_interval val_check_interval evaluation_steps evaluation.every "
    "evaluation.eval_every",
    "trainer.grad_clip": "max_grad_norm max_norm gradient_clipping gradient_clip_val clip_grad clip_grad_norm",
    "trainer.activation_checkpointing": "gradient_checkpointing use_gradient_checkpointing recompute "
    "activation_checkpoint",
    "trainer.compile": "torch_compile",
    "trainer.loader_workers": "num_workers dataloader_num_workers",
    "optimizer.lr": "learning_rate base_lr peak_lr max_lr",
    "optimizer.weight_decay": "wd decay",
    "optimizer": "optim",
    "schedule": "lr_scheduler lr_scheduler_type scheduler",
    "schedule.warmup_steps": "warmup num_warmup_steps warmup_iters lr_warmup_steps warmup_ratio",
    "precision": "bf16 fp16 fp32 fp8 float8 dtype mixed_precision torch_dtype amp",
    "engine": "strategy deepspeed zero_stage zero fsdp distributed_strategy",
    "launcher.processes": "gpus devices num_gpus n_gpus nproc_per_node num_processes world_size ntasks_per_node",
    "launcher.nodes": "node num_nodes nnodes",
    "engine.tensor_parallel": "tensor_parallel_degree tensor_parallel_size tp tp_size",
    "engine.sequence_parallel": "context_parallel context_parallel_degree cp",
    "seed": "random_seed manual_seed",
    "run.dir": "resume_from_checkpoint resume output_dir out_dir save_dir default_root_dir run_dir",
    "checkpoint.every": "save_steps save_interval save_every checkpoint_interval",
    "checkpoint.keep_last": "save_total_limit save_top_k",
    "data.path": "dataset datasets data_path data_dir dataset_path dataset_name train_file data_files",
    "data.sequence_length": "seq_len seq_length sequence_len max_seq_len max_seq_length block_size context_length "
    "max_length max_position_embeddings",
    "data.tokenizer": "tokenizer_name tokenizer_path",
    "data.packing": "sample_packing pack",
    "model.path": "model_name_or_path model_name pretrained base_model checkpoint_path",
    "model.width": "hidden_size d_model n_embd dim hidden_dim",
    "model.layers": "num_layers n_layers n_layer num_hidden_layers depth",
    "model.heads": "num_heads n_heads n_head num_attention_heads",
    "model.kv_heads": "num_kv_heads n_kv_heads num_key_value_heads",
    "model.mlp_width": "intermediate_size ffn_hidden_size d_ff",
    "tracker": "report_to logger wandb tensorboard",
}
"""bigtrain's names, and the others'."""


def called_here(name: str) -> str | None:
    """bigtrain's name of another trainer's setting, or of ours without its group; None: neither is known."""
    return next((here for here, others in HERE.items() if name in (here.rpartition(".")[2], *others.split())), None)
