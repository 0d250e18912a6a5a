"""The keys of a run's configuration, listed once by who reads them.

Run ids, rows, factor lines and asymmetries all start from these lists. A test compares them with the fields of
`lorax.config.RunConfig` and of every initialiser, so that a new key has to be put in one of them. Torch-free.
"""

from __future__ import annotations

METHOD = ("rank", "alpha", "scaling", "zeta", "zeta_rule", "gamma")
"""Read by an initialiser, if it has a field of that name; consumed values are in `identity["init"]`."""
METHOD_DEFAULTS = METHOD[1:]
"""Those that take the method's own default where nobody sets them."""
FACTORS = ("alpha", "zeta", "gamma")
"""Those that are numbers with a default: a study may draw its scores over them."""

EVERY_RUN = ("task", "model", "data_seed", "dtype", "evaluate")
"""Read by every run, the frozen base too."""
TRAINING = ("lr", "steps", "batch_size", "weight_decay", "seed")
"""Read where something trains."""
OBJECTIVE = ("objective",)
"""Read where something trains, with the keys of `reinforce`; part of a run's id where it is not the likelihood."""
LIKELIHOOD = "likelihood"
"""The objective of a run whose identity names none."""
ADAPTERS = ("targets", "recenter", "dropout")
"""Read where factors are installed; full fine-tuning reads `targets` alone."""
RULES = (
    "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "modules_to_save",
)  # fmt: skip
"""Read where factors are installed, beside the targets; part of a run's id where they are set."""
GROUP = ("share",)
"""Read by runs over several tasks, of methods that leave to the user what their tasks share."""
CALIBRATION = ("calibration",)
"""Read by methods that look at gradients or activations before they start."""
DIAGNOSTICS = ("diagnostics", "diagnostics_every", "forgetting_tokens")
"""Read where the trained run is measured."""
BOOKKEEPING = ("device", "base", "cache", "track", "name", "results_dir", "label", "tag", "save", "save_rank", "plan")
"""Where and how a run is done and kept: never part of its id."""

TRAIN_BOOKKEEPING = ("checkpoint_every", "eval_batch_size", "compile", "shard", "checkpointing")
"""Keys of `train` that change no result."""
TRAIN_WHERE_SET = ("max_tokens",)
"""Keys of `train` that are part of a run's id where they are set."""
TRAIN_CALIBRATION = ("calibration_batches",)
"""Keys of `train` that belong to `CALIBRATION`."""
