"""Configurations that come with the project; whatever else lies beside them is the user's own."""

_RUNS = """
    datalist.json evaluate.json inference.json logging.conf losses.json metadata.json
    multi_gpu_train.json preprocess.json train.json validate.json
"""
_EXPERIMENTS = """
    accumulation affinities anyup batch_renorm boundary_gaussian checkpointing components
    context demo deterministic dynunet early_stopping elastic ema fib25 float16 fusion_concat
    fusion_weighted
    int8_cache labels loss_affinity_bce loss_affinity_dice loss_affinity_focal
    loss_affinity_lsds loss_affinity_tversky loss_boundary_affinity_bce
    loss_boundary_affinity_focal loss_boundary_affinity_focal_lsds loss_boundary_affinity_lsds
    loss_cross_entropy loss_dice loss_focal loss_focal_dice loss_tversky
    loss_weighted_cross_entropy mednext norm_batch norm_instance overfit_one_volume plateau
    raw_only residual seeded_watershed segresnet sgd strong_augmentation tokens_only two_dimensions
    whole_volume
"""
SHIPPED_CONFIGS = (
    *(f"configs/{name}" for name in _RUNS.split()),
    *(f"configs/experiments/{name}.json" for name in _EXPERIMENTS.split()),
)
