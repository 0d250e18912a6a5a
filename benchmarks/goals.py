"""The goals with which `results/benchmarks/index.md` compares the measured figures, and why some are missed."""

from __future__ import annotations

from dataclasses import dataclass

SLOWER = "gesdd itself takes 20.8 s here, 9.4 s where the goal was set"
SVFT = "SVFT alone: it reads and checks all singular vectors, twice the weights; the others take 0.30 to 0.39 s"
FP32 = "fp32 without matrix units: half is training, which runs at the speed of the base's products, packed or not"
SCORED = "58 % is scoring 12 x 3,080 texts: the base's products, which packing does not save in fp32"
STEP = "set for bf16 with AMX: in fp32 PEFT itself takes only 1.3 x the lower bound"
THIN = "rank-8 products run at a third of the speed of large ones; q, k, v in one would save 4 % of their time"
SMOLLM2 = "128 tokens keep these fp32 cores busy: four lanes gain 1.21 x over one by one"
HALF = "set for bf16; against the lower bound, which has all positions, PEFT takes 1.43 x, ours 1.16 x"
EIGHTH = "set for bf16; against the lower bound, which has all positions, PEFT takes 1.29 x, ours 0.99 x"
EXACT = "exact: the weights' gradients are half as much again as the pass; PEFT takes 1.48 x (no sketch mode)"
AMX = "set with AMX; measured on an AMD EPYC with avx512_bf16 alone, where a bf16 step takes half of an fp32 one"
AMX_STEP = "set with AMX; on avx512_bf16 alone level with PEFT's eager attention, 1.52 x its default"


@dataclass(frozen=True)
class Goal:
    """A bound on one row of one benchmark."""

    what: str
    benchmark: str
    case: str
    measure: str
    bound: str
    """`>= 1.5` or `<= 0.3`."""
    why: str = ""
    """The reason shown where the goal is not reached or not measured."""

    def reached(self, value: float) -> str:
        """Return yes, tie (within 5 %) or no.

        Examples:
            >>> goal = Goal("", "", "", "", ">= 1.5")
            >>> goal.reached(1.6), goal.reached(1.45), goal.reached(1.2)
            ('yes', 'within 5 %', 'no')
        """
        sign, number = self.bound.split()
        bound = float(number)
        ratio = value / bound if sign == ">=" else bound / max(value, 1e-30)
        return "yes" if ratio >= 1 else "within 5 %" if ratio >= 0.95 else "no"


SMOL, SMOL_SMALL = "smollm2 8x64 fp32", "smollm2 2x64 fp32"
MINI, MINI_SMALL = "minilm 32x32 fp32", "minilm 8x32 fp32"

GOALS = (
    Goal("packed, MiniLM 8x32 fp32, K = 8, vs PEFT tuned one by one", "packed", MINI_SMALL,
         "PEFT tuned, one by one / packed K=8", ">= 1.6"),
    Goal("the same, vs the best two-process PEFT sweep", "packed", MINI_SMALL,
         "two PEFT processes / best of ours", ">= 1.1"),
    Goal("packed, MiniLM 32x32 fp32 (saturated), K = 4", "packed", MINI,
         "PEFT tuned, one by one / packed K=4", ">= 1.1"),
    Goal("packed, SmolLM2 2x64 fp32, K = 4", "packed", SMOL_SMALL,
         "PEFT tuned, one by one / packed K=4", ">= 1.6", SMOLLM2),
    Goal("packed, MiniLM 8x32 bf16, K = 8, vs PEFT tuned one by one", "packed", "minilm 8x32 bf16",
         "PEFT tuned, one by one / packed K=8", ">= 3.3", AMX),
    Goal("packed, SmolLM2 2x64 bf16, K = 4, vs PEFT tuned one by one", "packed", "smollm2 2x64 bf16",
         "PEFT tuned, one by one / packed K=4", ">= 2.5", AMX),
    Goal("one more lane's memory, MiniLM 8x32 (MB)", "packed", MINI_SMALL, "memory of one more lane", "<= 60"),
    Goal("step / lower bound, SmolLM2 8x64, fp32 here", "step", SMOL, "ours / lower bound", "<= 1.12", THIN),
    Goal("step, SmolLM2 8x64, PEFT default / ours, fp32 here", "step", SMOL, "PEFT default / ours", ">= 1.6",
         STEP),
    Goal("step, SmolLM2 8x64, PEFT tuned / ours, fp32 here", "step", SMOL, "PEFT tuned / ours", ">= 1.35",
         STEP),
    Goal("step, MiniLM 32x32 fp32, PEFT tuned / ours", "step", MINI, "PEFT tuned / ours", ">= 1.12"),
    Goal("step, MiniLM 32x32 bf16, PEFT tuned / ours", "step", "minilm 32x32 bf16", "PEFT tuned / ours", ">= 1.4",
         AMX_STEP),
    Goal("answers only labelled (half), SmolLM2 8x64, PEFT tuned / ours", "step", "smollm2 8x64 fp32, 50% labelled",
         "PEFT tuned / ours", ">= 1.5", HALF),
    Goal("answers only labelled (an eighth), SmolLM2 8x64, PEFT tuned / ours", "step",
         "smollm2 8x64 fp32, 12% labelled", "PEFT tuned / ours", ">= 1.5", EIGHTH),
    Goal("SVFT plain step / LoRA step", "step", SMOL, "SVFT plain / LoRA, ours", "<= 1.3"),
    Goal("LoRA-XS step / LoRA step", "step", SMOL, "LoRA-XS / LoRA, ours", "<= 1.0"),
    Goal("dropout 0.05, step with / without", "dropout", MINI, "ours: with / without dropout", "<= 1.25"),
    Goal("both ends of every spectrum, SmolLM2, 210 linears (s)", "svd", "smollm2, 210 linears",
         "both ends: ours", "<= 3", SLOWER),
    Goal("the same, gesdd / ours", "svd", "smollm2, 210 linears", "both ends: gesdd / ours", ">= 3.1", SLOWER),
    Goal("its worst principal angle (sine)", "svd", "smollm2, 210 linears",
         "sine, both ends, worst layer: ours", "<= 1e-6"),
    Goal("block Krylov, top 8 of 2048x8192, gesdd / ours", "svd", "2048x8192, top 8", "gesdd / ours", ">= 10"),
    Goal("its angle (sine)", "svd", "2048x8192, top 8", "sine: ours", "<= 1e-4"),
    Goal("block Krylov, top 8 of 4096x4096, gesdd / ours", "svd", "4096x4096, top 8", "gesdd / ours", ">= 10"),
    Goal("randomised principal SVD, worst layer (sine)", "svd", "smollm2, 210 linears",
         "sine, randomised top 8, worst layer: ours", "<= 1e-2"),
    Goal("next initialisation from the cache, SmolLM2, slowest method (s)", "cache", "smollm2",
         "next initialisation: slowest method", "<= 0.3", SVFT),
    Goal("step-0 change with a bf16 base, worst method (ulp)", "init", "smollm2 bf16 base",
         "step-0 change, worst of our methods", "<= 1"),
    Goal("LoRA-GA gradient pass / pass without gradients, SmolLM2", "gradient_pass", "smollm2 4x64 fp32",
         "ours / pass without gradients", "<= 1.3", EXACT),
    Goal("greedy evaluation of K = 8 lanes, vs one by one in PEFT", "evaluation",
         "smollm2 chain_sum, 48 items, K=8", "PEFT one by one / ours together", ">= 3"),
    Goal("time to table, SmolLM2 chain_sum, vs the PEFT script", "time_to_table",
         "smollm2 chain_sum, 6 runs of 20 steps x 4", "PEFT script / ours", ">= 4", FP32),
    Goal("time to table, MiniLM banking77, vs the PEFT script", "time_to_table",
         "minilm banking77, 12 runs of 40 steps x 8", "PEFT script / ours", ">= 4", SCORED),
)  # fmt: skip
