"""Run by test_llm_options under torchrun: adapters on a quantised base at several settings.

Arguments: LM directory, output file, settings as quantization:zero:precision:zero after the resumption or "".
Writes {setting: figures} as JSON: the losses of the steps, the last one's loss again from the stored
weights in a fresh model, and how many reports that writes.
"""

from functools import partial

import torch
import torch.distributed as dist
from zero_worker import GLOBAL_BATCH, main, new_engine, rows, whole

from r2kg.config.parts import Decoding
from r2kg.config.run import Run
from r2kg.systems.contract import build_model, load_stored, to_device
from r2kg.training.checkpoint import weights_of

STEPS, RESUME_AT = 5, 3


def figures(lm: str, setting: str, rank: int, world: int) -> list[float]:
    """Losses of five steps and of a validation; before the fourth step the state may go on to another ZeRO stage."""
    quantization, zero, precision, resumed = setting.split(":")
    run = Run(
        name="qlora",
        model={
            "system": "r2genkg",
            "vision": {"name": "test_vit", "weights": "random", "image_px": 64, "tuning": "full"},
            "llm": {
                "source": lm, "tuning": "lora", "lora": {"rank": 4, "dropout": 0.0}, "quantization": quantization,
            },
            "report_tokens": 12,
        },
        engine={"zero": int(zero), "precision": precision},
        optim={"lr": 1e-2, "schedule": "constant"},
        train={"global_batch": GLOBAL_BATCH, "micro_batch": 4, "workers": world, "gpus": False},
    )  # fmt: skip
    engine, model = new_engine(run, partial(build_model, run.model), None)
    found = []
    for step in range(STEPS):
        if resumed and step == RESUME_AT:
            run = run.change({"engine.zero": int(resumed)})
            state = {"tensors": whole(engine.state(), world), "step": step}
            engine, model = new_engine(run, partial(build_model, run.model), state)
        batches = [model.collate(micro) for micro in rows(step, rank, world, 4)]
        found.append(engine.step(batches)["loss"])
        if step == 1:  # a pass without gradients in between must not change those that follow
            engine.validation_loss(batches)
    state = whole(engine.state(), world)
    fresh = build_model(run.model)  # as the writers of predictions do it
    load_stored(fresh, weights_of(state))
    if precision == "bf16":
        fresh.to(torch.bfloat16)
    fresh.to("cpu").eval()
    batch = to_device(fresh.collate(rows(STEPS - 1, rank, world, 4)[0]), "cpu")
    with torch.no_grad():
        (term,) = fresh.loss(batch).values()
    means = [term.sum, term.count]
    total = torch.tensor([float(value) for value in means])
    if world > 1:
        dist.all_reduce(total)
    written = fresh.generate(batch, Decoding(beams=1, max_new_tokens=4))
    return [*found, float(total[0] / total[1]), sum(report.tokens > 0 for report in written)]


if __name__ == "__main__":
    main(figures)
