"""A pipeline that `spark-submit` starts on a standalone cluster, with its Python environment in an archive."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from headrace.testing.servers import KafkaBroker, SparkCluster
from tests.crash import harness

from . import pipelines

pytestmark = pytest.mark.spark
ROWS = 3_000
APP = """
import sys
import time
from pathlib import Path

import headrace as hr


class Own(hr.KMeans):
    '''A class of the user's own; says which Python predicts.'''

    def predict(self, X):
        time.sleep(0.001 * len(X))
        with Path({told!r}).open("a") as file:
            file.write(sys.executable + "\\n")
        return super().predict(X)


app = hr.App("submitted", log={log!r})
model = app.model("species", Own(k=2, initial_centers=[[0.0, 0.0], [5.0, 5.0]]), features=["x", "y"])
model.learn(app.topic({topic!r}), every=512)
model.predict(app.topic({topic!r})).to({output!r})
app.run(engine="spark", until="caught-up")
"""


def packed(folder: Path) -> Path:
    """An environment as an archive, as venv-pack makes one; its packages are those of this one, by their path."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "environment"], check=True)
    (site,) = (folder / "environment" / "lib").glob("python*/site-packages")
    (site / "here.pth").write_text("".join(f"{path}\n" for path in sys.path if path and Path(path).is_dir()))
    archive = folder / "environment.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in (folder / "environment").iterdir():
            tar.add(path, path.name)
    return archive


def test_a_pipeline_is_submitted_with_its_environment(
    broker: KafkaBroker, topic_prefix: str, spark_cluster: SparkCluster, tmp_path: Path
) -> None:
    topic, output, told = f"{topic_prefix}-points", f"{topic_prefix}-out", tmp_path / "told"
    broker.create_topic(topic)
    pipelines.send(broker.bootstrap, topic, 0, ROWS)
    file = tmp_path / "iris_spark.py"
    file.write_text(APP.format(log=f"kafka://{broker.bootstrap}", topic=topic, output=output, told=str(told)))
    submit = Path(sys.executable).parent / "spark-submit"
    archives = ["--archives", f"{packed(tmp_path)}#environment"]
    environment = {
        **os.environ,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "PYSPARK_PYTHON": "./environment/bin/python",
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    done = subprocess.run(
        [submit, "--master", spark_cluster.place, *archives, file],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(harness.committed(broker.bootstrap, output)) == ROWS
    pythons = set(told.read_text().split())
    assert any("environment/bin/python" in python for python in pythons), pythons
