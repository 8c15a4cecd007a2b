"""The part of a task about other tools that keep its results as well."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from raytune_autotuner.task.parameters import Model


def _without_password(uri: str) -> str:
    try:
        secret = "@" in urlsplit(uri).netloc
    except ValueError:  # may be anything, so it is not repeated
        secret = True
    if secret:
        raise ValueError(
            "an address must not carry a user or password: MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and "
            "MLFLOW_TRACKING_TOKEN are taken from the environment"
        )
    return uri


class Mlflow(Model):
    experiment: str | None = Field(None, min_length=1, description="MLflow's experiment; default: task_name")
    uri: Annotated[str, AfterValidator(_without_password)] | None = Field(
        None, min_length=1, description="the tracking server or database; default: MLFLOW_TRACKING_URI"
    )


class Tracking(Model):
    """The experiment folder stays the truth; these are copies for people who look elsewhere."""

    tensorboard: bool = Field(False, description="TensorBoard files in the experiment folder, under tensorboard/")
    mlflow: Mlflow | None = Field(None, description="a run per trial in MLflow; needs the extra `mlflow`")
