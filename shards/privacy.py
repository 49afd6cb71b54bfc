"""The fence around patient data: which terms a dataset has, what its studies are called outside, what errors may say.

For credentialed data nothing that a shard, a log, an exception or a tracking server shows holds an identifier of the
owner: keys, ids and patients are salted hashes from the moment of writing, so that no later stage can leak what it
never saw. The owner's identifiers and the details of drops stay in `private/` below the shards, the salt is outside.
"""

import hashlib
import hmac
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from shards.errors import CheckpointError, ConfigError, DataError, RetryableError
from shards.study import Drop, Record, Study, key_of

OURS = (ConfigError, DataError, CheckpointError, RetryableError)


class Terms(Record):
    """What a licence tag asks of whoever holds the data."""

    credentialed: bool
    """Access is granted person by person: neither text nor identifiers may reach anyone else."""
    summary: str
    """One line for receipts."""


TERMS = {
    "synthetic": Terms(credentialed=False, summary="drawn, no patients"),
    "public": Terms(credentialed=False, summary="public, as whoever made the shards says"),
    "credentialed": Terms(credentialed=True, summary="credentialed, as whoever made the shards says"),
    "cc-by-nc-nd-4.0": Terms(credentialed=False, summary="public with attribution; no commercial use, no derivatives"),
    "physionet-credentialed-1.5.0": Terms(
        credentialed=True, summary="PhysioNet credentialed health data licence 1.5.0"
    ),
    "stanford-aimi-rua": Terms(credentialed=True, summary="Stanford AIMI research use agreement"),
}
UNKNOWN = Terms(credentialed=True, summary="unknown terms, treated as credentialed")


def terms_of(licence: str) -> Terms:
    """Terms of a licence tag; a tag that is not known is treated as credentialed."""
    return TERMS.get(licence, UNKNOWN)


@dataclass(frozen=True)
class Names:
    """What studies and patients are called in shards and in everything made from them."""

    salt: bytes = b""
    """Empty for open data, whose own identifiers are kept."""

    def key(self, identifier: str) -> str:
        """Shard key of a study."""
        return f"s{self._hash('study', identifier)[:20]}" if self.salt else key_of(identifier)

    def id(self, identifier: str) -> str:
        """Id of a study as shown: the owner's for open data, the key for credentialed data."""
        return self.key(identifier) if self.salt else identifier

    def patient(self, identifier: str) -> str:
        """Patient as shown; empty stays empty."""
        return f"p{self._hash('patient', identifier)[:16]}" if self.salt and identifier else identifier

    def study(self, study: Study) -> Study:
        """The study under its outside names; for credentialed data also without file names and rows."""
        if not self.salt:
            return study
        return study.model_copy(
            update={
                "key": self.key(study.id),
                "id": self.id(study.id),
                "patient": self.patient(study.patient),
                "views": tuple(view.model_copy(update={"file": ""}) for view in study.views),
                "provenance": {"source": study.provenance.get("source", "")},
            }
        )

    def drop(self, drop: Drop) -> Drop:
        """The drop as the manifest shows it: for credentialed data under its key, the details left to private/."""
        if not self.salt:
            return drop
        return Drop(id=self.key(drop.id), reason=drop.reason, detail="see private/", split=drop.split)

    @property
    def digest(self) -> str:
        """Says whether two writers name alike, without telling the salt."""
        return hashlib.sha256(b"names" + self.salt).hexdigest()[:16] if self.salt else ""

    def _hash(self, kind: str, identifier: str) -> str:
        return hmac.new(self.salt, f"{kind}:{identifier}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


@contextmanager
def fence(licence: str, allow_text: bool = False) -> Iterator[None]:
    """Let no error out of the block but as `fenced` shows it."""
    try:
        yield
    except Exception as error:
        if (shown := fenced(error, licence, allow_text)) is error:
            raise
        raise shown from None


def fenced(error: BaseException, licence: str, allow_text: bool = False) -> BaseException:
    """`error` as it may be shown: messages of libraries can quote the data they failed on, ours never do.

    For open data, for our own errors, or with `allow_text`, the error itself. Else a RuntimeError that names the type
    and the places in the code, without the message.
    """
    if allow_text or isinstance(error, OURS) or not terms_of(licence).credentialed:
        return error
    frames = "; ".join(
        f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
    )
    return RuntimeError(
        f"{type(error).__name__} (its message is withheld: it may quote a report of data under {licence}; "
        f"privacy.allow_text=true shows it) at {frames}"
    )
