"""Systems of no model, for the tests of overrides: unions, parts that may be switched off, a dictionary, a tuple."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from r2kg.config.needs import Inputs
from r2kg.config.parts import Data, Part
from r2kg.config.run import System
from r2kg.modules.config import Llm, Lora

OWN, OTHER = f"{__name__}:Own", f"{__name__}:Other"


class Graph(Part):
    levels: int = Field(default=2, ge=1)
    sizes: tuple[int, ...] = (100, 200)
    adapter: Lora = Lora()


class Matrix(Part):
    kind: Literal["matrix"] = "matrix"
    rows: int = Field(default=14, ge=1)
    decay: float = 0.5


class Bank(Part):
    kind: Literal["bank"] = "bank"
    size: int = Field(default=2048, ge=1)
    adapter: Lora | None = None


Knowledge = Annotated[Matrix | Bank, Field(discriminator="kind")]


class Own(System):
    build: ClassVar[str] = "nowhere:Model"

    system: Literal["tests.r2kg.config.own_system:Own"] = OWN
    graph: Graph | None = None
    knowledge: Knowledge = Matrix()
    memory: Knowledge | None = None
    llm: Llm = Llm(source="own-llm")
    weights: dict[str, float] = Field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.98)

    def inputs(self, data: Data) -> Inputs:
        return Inputs()


class Head(Part):
    width: int = 8


class Other(System):
    build: ClassVar[str] = "nowhere:Model"

    system: Literal["tests.r2kg.config.own_system:Other"] = OTHER
    head: Head
    kind: Literal["wide", "deep"] = "wide"
    llm: Llm = Llm(source="other-llm", tuning="lora")

    def inputs(self, data: Data) -> Inputs:
        return Inputs(image_px=32)


class NoSystem(Part):
    system: str = f"{__name__}:NoSystem"
