"""Reports a second by beam search, three ways, of one Transformer at CKNet's sizes: time of the others ÷ time of ours.

Ours keeps keys and values, and the beams of a study share those of its film. The plain decoder reads the whole prefix
anew for every word; it must write the same reports. transformers' generate writes with a BART of equal sizes (layers,
heads, widths, words, film tokens), without a knowledge matrix, with which ours is burdened. Weights and film states are
random, and no report ends before its last word, so that all three write as many. Ratios are taken within a round.

    python -m bench.cknet_decode
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from bench.ingest import machine
from jobs.cli import run
from r2kg.config.parts import Decoding
from r2kg.modules.beams import write_r2gen
from r2kg.recipes.r2gengpt import TINY_VISION
from r2kg.systems.cknet.config import CKNetConfig
from r2kg.systems.cknet.model import CKNet, WordDecoder
from r2kg.systems.cknet.parts import Knowledge, Transformer
from r2kg.systems.cknet.vocabulary import write_vocabulary

VOCABULARY = 760
PLAIN, HF, OURS = "plain, whole prefix", "transformers' generate", "ours"


@dataclass(frozen=True, eq=False)
class PrefixDecoder:
    """The same model without a cache: what it holds of a row is its film's states and the words so far."""

    model: CKNet

    def first(self, batch: tuple[Tensor, None]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits of the first word."""
        begin = torch.zeros(len(batch[0]), 1, dtype=torch.long, device=batch[0].device)
        return self._last(batch[0], begin), (batch[0], begin)

    def step(self, tokens: Tensor, cache: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits of the word after one more."""
        words = torch.cat((cache[1], tokens[:, None]), 1)
        return self._last(cache[0], words), (cache[0], words)

    def reorder(self, cache: tuple[Tensor, Tensor], parents: Tensor) -> tuple[Tensor, Tensor]:
        """Rows moved."""
        return cache[0][parents], cache[1][parents]

    def _last(self, states: Tensor, words: Tensor) -> Tensor:
        transformer = self.model.transformer
        return transformer.decode(self.model.words_of(words)[0], transformer.read(states), None)[0][:, -1]


def make_models(folder: Path, tokens: int, sizes: Transformer, device: str) -> tuple[CKNet, Any]:
    """CKNet's decoder, and a BART of its sizes, both from random weights."""
    write_vocabulary(sorted(["<unk>", *(f"word{at}" for at in range(VOCABULARY - 1))]), folder)
    config = CKNetConfig(
        vision=TINY_VISION, transformer=sizes, knowledge=Knowledge(matrix="random"), words_at=str(folder)
    )
    bart = BartConfig(
        vocab_size=VOCABULARY + 1, d_model=sizes.width, encoder_layers=1, decoder_layers=sizes.layers,
        encoder_attention_heads=sizes.heads, decoder_attention_heads=sizes.heads, decoder_ffn_dim=sizes.hidden,
        max_position_embeddings=tokens + 8, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
        forced_eos_token_id=None,
    )  # fmt: skip
    return CKNet(config).to(device).eval(), BartForConditionalGeneration(bart).to(device).eval()


def main(
    studies: Annotated[int, typer.Option(help="reports that are written at once")] = 16,
    tokens: Annotated[int, typer.Option(help="words of a report")] = 60,
    films: Annotated[int, typer.Option(help="film tokens of a study")] = 98,
    beams: Annotated[int, typer.Option(help="beam width")] = 3,
    rounds: Annotated[int, typer.Option(help="how often each writes")] = 5,
) -> None:
    """Print reports a second and ratios by round, and their medians."""
    device, sizes = "cuda" if torch.cuda.is_available() else "cpu", Transformer()
    print(machine())
    torch.manual_seed(0)
    how = Decoding(
        beams=beams, length_rule="r2gen", repetition_penalty=1.0, max_new_tokens=tokens, min_new_tokens=tokens
    )
    with TemporaryDirectory() as folder, torch.inference_mode():
        model, bart = make_models(Path(folder), tokens, sizes, device)
        states = torch.randn(studies, films, sizes.width, device=device)
        decoders: dict[str, Any] = {PLAIN: PrefixDecoder(model), OURS: WordDecoder(model)}
        written = dict[str, Tensor]()

        def write(name: str) -> None:
            if name in decoders:
                written[name] = write_r2gen(decoders[name], (states, None), how, 0)
                return
            written[name] = bart.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states), num_beams=beams, length_penalty=0.0,
                min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, early_stopping=False,
            )  # fmt: skip

        ratios: dict[str, list[float]] = {PLAIN: [], HF: []}
        for number in range(rounds + 1):
            seconds = dict[str, float]()
            for name in (PLAIN, HF, OURS) if number % 2 else (OURS, HF, PLAIN):
                began = time.perf_counter()
                write(name)
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds[name] = time.perf_counter() - began
            if number == 0:  # the first round warms up
                assert torch.equal(written[PLAIN], written[OURS]), "with and without a cache they differ"
                assert written[HF].shape[1] in (tokens, tokens + 1), f"transformers wrote {written[HF].shape[1]} words"
                continue
            print(", ".join(f"{name} {studies / value:.1f} reports/s" for name, value in seconds.items()), flush=True)
            for name, those in ratios.items():
                those.append(seconds[name] / seconds[OURS])
    for name, those in ratios.items():
        print(f"{name} ÷ ours: {statistics.median(those):.2f} ({min(those):.2f}-{max(those):.2f})")


if __name__ == "__main__":
    run(main)
