"""What the errors of librdkafka become: which class, whether it is tried again, and that no secret is in it."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError as Code

from headrace.errors import LogError, LogLocked, LogTruncated, LogUnavailable
from headrace.kafka.cluster import translate

CASES = [
    (Code._FENCED, LogLocked),
    (Code.PRODUCER_FENCED, LogLocked),
    (Code.INVALID_PRODUCER_EPOCH, LogLocked),
    (Code._AUTHENTICATION, LogError),
    (Code.SASL_AUTHENTICATION_FAILED, LogError),
    (Code.TOPIC_AUTHORIZATION_FAILED, LogError),
    (Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, LogError),
    (Code.OFFSET_OUT_OF_RANGE, LogTruncated),
    (Code._AUTO_OFFSET_RESET, LogTruncated),
    (Code.UNKNOWN_TOPIC_OR_PART, LogTruncated),
    (Code._TRANSPORT, LogUnavailable),
    (Code._ALL_BROKERS_DOWN, LogUnavailable),
    (Code._TIMED_OUT, LogUnavailable),
    (Code.NOT_COORDINATOR, LogUnavailable),
    (Code.COORDINATOR_LOAD_IN_PROGRESS, LogUnavailable),
    (Code.INVALID_TXN_STATE, LogError),
    (Code.POLICY_VIOLATION, LogError),
]


@pytest.mark.parametrize(("code", "kind"), CASES, ids=[str(code) for code, _ in CASES])
def test_errors_become_ours(code: int, kind: type[LogError]) -> None:
    error = translate(Code(code, "because"), "committing", "kafka://a:9092/iris")
    assert type(error) is kind
    assert error.retry == (kind is LogUnavailable)
    assert ("kafka://a:9092/iris" in error.message and "committing" in str(error)) or kind is LogError


def test_a_reason_shows_no_secret() -> None:
    error = Code(Code._TRANSPORT, "connect with sasl.password=hunter2 token=abc failed")
    words = str(translate(error, "reading", "kafka://a:9092"))
    assert "hunter2" not in words and "abc" not in words and "failed" in words
