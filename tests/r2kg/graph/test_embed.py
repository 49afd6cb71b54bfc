"""Names of nodes as vectors, by a small BERT that is written here in the format of the hub's."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from r2kg.graph.artefact import KnowledgeGraph
from r2kg.graph.build.reports import EMPTY, Sifting, integrated
from r2kg.graph.embed import apart, embed, near_synonyms
from r2kg.graph.extract.lexicon import spellings
from r2kg.modules.config import TextEncoder
from shards.errors import ConfigError
from tests.r2kg.graph.test_build import said, statement

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for name in spellings() for word in name.split()})]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A BERT of random weights whose vectors of a name are much like those of its words."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_name_has_the_vector_that_it_has_alone(bert, pooling):
    """Whatever stands beside it in its batch, and whether it was asked for before."""
    encoder = TextEncoder(source=str(bert), pooling=pooling)
    names = ["heart", "left lower lobe", "pleural effusion", "costophrenic angle"]
    together = embed(names, encoder)
    assert together.shape == (4, 32) and together.dtype == torch.float32
    alone = torch.cat([embed([name], encoder) for name in names])
    assert torch.allclose(together, alone, atol=1e-5) and torch.equal(embed(names, encoder), together)
    hidden = BertModel.from_pretrained(bert).eval()(torch.tensor([[2, WORDS.index("heart"), 3]])).last_hidden_state
    expected = hidden[0, 0] if pooling == "cls" else hidden[0].mean(0)
    assert torch.allclose(together[0], expected.detach(), atol=1e-5)


def test_vectors_are_kept_by_what_decides_them(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for names, pooling in ((["heart"], "cls"), (["heart"], "cls"), (["lung"], "cls"), (["heart"], "mean")):
        embed(names, TextEncoder(source=str(bert), pooling=pooling))
    assert len(list((tmp_path / "r2kg" / "embeddings").iterdir())) == 3
    assert embed([], TextEncoder(source=str(bert))).shape == (0, 32)


def test_an_encoder_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in (str(tmp_path), "nobodys/encoder"):
        with pytest.raises(ConfigError, match=f"the text encoder '{source}' cannot be had: .*Give a local directory"):
            embed(["heart"], TextEncoder(source=source))


def graph_of(*names: str, kind: str = "anatomy") -> KnowledgeGraph:
    """Nodes of one kind, the first the most frequent."""
    ways = [statement(name, "modify", "effusion") for at, name in enumerate(names) for _ in range(len(names) - at)]
    mentions = said()
    mentions.statements.extend(ways)
    for way in ways:
        mentions.mentions[way.head, kind, "present"] += 1
        mentions.mentions[way.tail, "disorder", "present"] += 1
    tables, _ = integrated(mentions, Sifting())
    return KnowledgeGraph(EMPTY, **tables)


def test_alike_names_are_merged_and_what_tells_sides_apart_is_not(bert):
    encoder = TextEncoder(source=str(bert), pooling="mean")
    graph = graph_of("left lung", "right lung", "lung left", "heart")
    everything = near_synonyms(graph, encoder, least=-1.0)
    assert everything == {"lung left": "left lung"}, "words decide what may be merged, vectors what is"
    assert near_synonyms(graph, encoder, least=1.1) == {}
    assert apart("left lower lobe") != apart("right lower lobe") and apart("5 mm") != apart("6 mm")
