"""The page of the engines, followed command by command: on a cluster of Spark, and on one of Flink."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.testing.servers import FlinkCluster, KafkaBroker, SparkCluster
from tests.databases import Database
from tests.walkthrough import Walkthrough

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "engines.md"


def servers(database: Database, broker: KafkaBroker) -> dict[str, dict[str, str]]:
    """What the page's first servers give."""
    return {"The broker and the database": {"POSTGRES": database.dsn, "KAFKA": broker.bootstrap}}


@pytest.mark.spark
def test_the_page_can_be_followed_with_spark(
    database: Database, broker: KafkaBroker, spark_cluster: SparkCluster, tmp_path: Path
) -> None:
    """With `spark-submit` and a packed environment."""
    given = {
        **servers(database, broker),
        "A cluster of Spark": {"SPARK": spark_cluster.place, "HEADRACE": str(ROOT)},
        "A cluster of Flink": {},
        "With Flink": {},
    }
    with Walkthrough(PAGE, tmp_path, given=given, slow=True) as walkthrough:
        walkthrough.follow()


@pytest.mark.flink
def test_the_page_can_be_followed_with_flink(
    database: Database, broker: KafkaBroker, flink_cluster: FlinkCluster, tmp_path: Path
) -> None:
    given = {
        **servers(database, broker),
        "A cluster of Flink": {"FLINK": flink_cluster.place},
        "A cluster of Spark": {},
        "With Spark": {},
    }
    with Walkthrough(PAGE, tmp_path, given=given, slow=True) as walkthrough:
        walkthrough.follow()
