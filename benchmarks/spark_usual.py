"""Spark's own way, for comparison: a stream of Kafka's, foreachBatch, StreamingKMeansModel, Kafka's sink.

It is at least once, and its model is lost with the driver. The jars are fetched by Spark's own `spark.jars.packages`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

PACKAGES = "org.apache.spark:spark-sql-kafka-0-10_2.13:4.2.0"


def _nearest(row: Sequence[float], centers: Sequence[Sequence[float]]) -> int:
    distances = [sum((p - q) ** 2 for p, q in zip(row, center, strict=True)) for center in centers]
    return distances.index(min(distances))


def usual(bootstrap: str, prefix: str, rows: int) -> dict[str, Any]:
    """Return rows a second, from the first batch on."""
    from pyspark.mllib.clustering import StreamingKMeansModel
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import col, from_json, struct, to_json, udf
    from pyspark.sql.types import IntegerType

    from benchmarks.spark_workload import CENTERS

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    session = SparkSession.builder.master("local[2]").config("spark.jars.packages", PACKAGES)
    spark = session.config("spark.ui.enabled", "false").config("spark.sql.shuffle.partitions", "2").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    model = StreamingKMeansModel(CENTERS, [1.0] * len(CENTERS))
    done, times = 0, []
    schema = "id long, a double, b double, c double, d double"

    def batch(frame: Any, number: int) -> None:
        nonlocal done, model
        frame = frame.persist()
        learned = frame.filter(col("topic") == f"{prefix}-train").select("a", "b", "c", "d").rdd.map(list)
        if not learned.isEmpty():
            model = model.update(learned, 0.5, "batches")
        centers = [center.tolist() for center in model.centers]
        predict = udf(lambda *row: _nearest(row, centers), IntegerType())
        asked = frame.filter(col("topic") == f"{prefix}-test")
        out = asked.withColumn("prediction", predict("a", "b", "c", "d"))
        value = to_json(struct("id", "a", "b", "c", "d", "prediction")).alias("value")
        sink = out.select(value).write.format("kafka").option("kafka.bootstrap.servers", bootstrap)
        sink.option("topic", f"{prefix}-usual").save()
        done += asked.count()
        times.append((time.monotonic(), done))
        frame.unpersist()

    stream = spark.readStream.format("kafka").option("kafka.bootstrap.servers", bootstrap)
    stream = stream.option("subscribe", f"{prefix}-train,{prefix}-test").option("startingOffsets", "earliest")
    rows_of = stream.option("maxOffsetsPerTrigger", 65_536).option("kafka.isolation.level", "read_committed").load()
    parsed = rows_of.select("topic", from_json(col("value").cast("string"), schema).alias("row")).select(
        "topic", "row.*"
    )
    begun = time.monotonic()
    query = parsed.writeStream.foreachBatch(batch).start()
    while done < rows and query.isActive:
        time.sleep(0.05)
    query.stop()
    if query.exception():
        raise SystemExit(str(query.exception()))
    spark.stop()
    first = times[0] if len(times) > 1 else (begun, 0)
    return {"rows_s": (done - first[1]) / (times[-1][0] - first[0]), "rows": done, "exactly_once": False}
