"""The words artefact names the training studies whose reports it could not count."""

import json
import shutil

import pytest

from r2kg.recipes import find_recipe
from r2kg.systems.cknet.vocabulary import UNREAD, artefact, read_vocabulary
from shards.errors import DataError
from shards.tars.format import read_manifest


def test_reports_that_cannot_be_read_are_named_and_counted(phantom_shards, tmp_path, capsys):
    root, manifest = shutil.copytree(phantom_shards, tmp_path / "shards"), read_manifest(phantom_shards)
    run = find_recipe("cknet.tiny").change({"data.shards": str(root), "data.on_bad": "skip"})
    for name in ("whole", "torn", "refused"):
        (tmp_path / name).mkdir()
    artefact(3, None, run, manifest, "").make(tmp_path / "whole")
    assert not (tmp_path / "whole" / UNREAD).exists() and "Not counted" not in capsys.readouterr().out
    tar = next(root / shard.name for shard in manifest.shards if shard.split == "train")
    data = bytearray(tar.read_bytes())
    at = data.index(b'"report"')
    data[at : at + 8] = b'"rep0rt"'
    tar.write_bytes(data)
    artefact(3, None, run, manifest, "").make(tmp_path / "torn")
    ((key, cause),) = json.loads((tmp_path / "torn" / UNREAD).read_text()).items()
    told = capsys.readouterr().out
    assert "The words of 1 reports are not counted" in told and f"Not counted: {key}: {cause}" in told
    assert read_vocabulary(str(tmp_path / "torn")) is not None
    with pytest.raises(DataError, match=key):
        artefact(3, None, run.change({"data.on_bad": "fail"}), manifest, "").make(tmp_path / "refused")
