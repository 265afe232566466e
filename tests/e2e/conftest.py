"""Real processes, shared or of a test's own."""

from pool_fixtures import _fake_session, _minilm_session, _qwen_session, fake, minilm, qwen, record, start_pool

__all__ = ["_fake_session", "_minilm_session", "_qwen_session", "fake", "minilm", "qwen", "record", "start_pool"]
