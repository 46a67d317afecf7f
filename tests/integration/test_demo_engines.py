"""The Iris demo on Spark and on Flink, with clusters of its own: both published tables, from real rows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from headrace.testing.servers import FlinkCluster, SparkCluster
from tests.processes import headrace

from .test_demo import EXPECTED

CORRECT = {"flink": [5, 7, 9], "spark": [5, 8, 11]}
SECONDS = 900.0


def check(printed: str, flavour: str) -> None:
    result = json.loads(printed)
    assert result["flavour"] == flavour
    for round_ in result["rounds"]:
        assert round_["predictions"] == EXPECTED[flavour][f"after_{round_['after']}"]
    assert [round_["correct"] for round_ in result["rounds"]] == CORRECT[flavour]


@pytest.mark.parametrize("engine", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in CORRECT])
def test_the_published_table_from_debezium(engine: str, tmp_path: Path) -> None:
    """The seed's two jobs, each an option of one command: real Debezium, a broker, a cluster with two workers."""
    demo = ("demo", "iris", "--engine", engine, "--source", "debezium", "--json")
    check(headrace(*demo, cwd=tmp_path, timeout=SECONDS), engine)


@pytest.mark.spark
def test_a_cluster_of_spark_that_is_there(spark_cluster: SparkCluster, tmp_path: Path) -> None:
    """It says where Spark's own page is."""
    printed = headrace(
        "demo", "iris", "--engine", "spark", "--master", spark_cluster.place, cwd=tmp_path, timeout=SECONDS
    )
    assert re.search(r"^Spark shows it at http://\S+:\d+$", printed, re.MULTILINE), printed
    assert "11 of 11 right" in printed


@pytest.mark.flink
def test_a_cluster_of_flink_that_is_there(flink_cluster: FlinkCluster, tmp_path: Path) -> None:
    """Tables that are captured beside the job; it says where Flink's own page is."""
    demo = ("demo", "iris", "--engine", "flink", "--jobmanager", flink_cluster.place)
    printed = headrace(*demo, cwd=tmp_path, timeout=SECONDS)
    assert f"Flink shows it at http://{flink_cluster.place}" in printed
    assert "9 of 11 right" in printed


@pytest.mark.flink
def test_a_model_that_needs_ticks_is_refused(tmp_path: Path) -> None:
    assert "takes no ticks yet" in headrace(
        "demo", "iris", "--engine", "flink", "--flavour", "spark", cwd=tmp_path, code=2
    )
