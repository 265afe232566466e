"""What makes two requests equal for an engine."""

import hashlib

import msgspec

from protocol.messages import EmbedJob, GenerateJob, Job


def fingerprint(model: str, job: Job) -> bytes:
    """Return a hash of all but who sent a request, its id and its seed, which is drawn anew each time.

    Images count by the digests in the job: to hash their bytes would hold up the event loop.
    """
    job = msgspec.structs.replace(job, job=0, attempt=0, tenant="")
    if isinstance(job, GenerateJob):
        sampling = msgspec.structs.replace(job.sampling, seed=0)
        job = msgspec.structs.replace(job, request_id="", sampling=sampling)
    elif isinstance(job, EmbedJob):
        job = msgspec.structs.replace(job, request_id="")
    digest = hashlib.blake2b(model.encode(), digest_size=16)
    try:
        digest.update(msgspec.msgpack.encode(job))
    except (ValueError, OverflowError, TypeError):
        # What can't be encoded is never sent, and so kills nobody.
        return b""
    return digest.digest()
