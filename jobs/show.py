"""Print the run that a recipe and its overrides make, or what its model is composed of."""

from typing import Annotated

import typer

from jobs.cli import run, without_gpu_warning
from jobs.train import resolve
from r2kg.config.run import Run
from shards.errors import ConfigError


def main(
    recipe: Annotated[
        str,
        typer.Argument(help="a name from `r2kg recipes`, their.module:function, ablation:RECIPE:NAME, or a run.json"),
    ],
    changes: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. train.epochs=3")] = None,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="parameters by module, and the tokens the language model is shown")
    ] = False,
) -> None:
    """Print the resolved run as JSON; nothing is run."""
    resolved = resolve(recipe, changes or [])
    print("\n".join(parameter_lines(resolved)) if parameters else resolved.model_dump_json(indent=2))


def parameter_lines(run: Run) -> list[str]:
    """Parameters and trained ones of every module, on the meta device: no weights are loaded.

    The language model's and a text encoder's configuration are read from where they lie, or from the hub.
    """
    if run.model.model_dump().get("llm", {}).get("source") == "tiny":
        raise ConfigError(
            "model.llm.source=tiny is made of the training reports before a run: give the run.json of one, or a "
            "directory or hub id in model.llm.source"
        )
    without_gpu_warning(False)
    import torch  # seconds, after what is refused without it

    from r2kg.modules.hub import go_offline_without_hub
    from r2kg.systems.contract import build_model, modules_of

    go_offline_without_hub()
    with torch.device("meta"):
        model = build_model(run.model)
    modules = modules_of(model)  # type: ignore[arg-type]  # a Model is an nn.Module
    modules |= {"all": [parameter for those in modules.values() for parameter in those]}
    lines = [f"{'module':28}{'parameters':>16}{'trained':>16}"]
    for name, those in modules.items():
        trained = sum(parameter.numel() for parameter in those if parameter.requires_grad)
        lines.append(f"{name:28}{sum(parameter.numel() for parameter in those):16,}{trained:16,}")
    tokens: dict[str, int] = getattr(model, "token_counts", dict)()
    if tokens:
        lines.append(f"Soft tokens: {sum(tokens.values())} ({', '.join(f'{n} {what}' for what, n in tokens.items())})")
    return lines


if __name__ == "__main__":
    run(main)
