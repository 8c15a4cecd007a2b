"""The web front end."""

from __future__ import annotations

import os

import click

from raytune_autotuner.cli.options import OK, exit_codes, storage_option


@click.command()
@storage_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8378, show_default=True, help="0 takes a free one.")
@click.option(
    "--token-env",
    default="RAYTUNE_AUTOTUNER_WEB_TOKEN",
    show_default=True,
    metavar="NAME",
    help="The environment variable with the token; without it, one is made and printed where one is needed.",
)
@click.option("--allow-host", multiple=True, metavar="NAME", help="A name by which it is reached; repeatable.")
@click.option("--behind-tls", is_flag=True, help="Behind a proxy that speaks TLS: sessions go by TLS alone.")
@click.option("--kubeconfig", help="For the models and runtimes to choose from; default as for tasks.")
@click.option("--ray-address", envvar="RAY_API_SERVER_ADDRESS", show_envvar=True, help="A Ray cluster's dashboard.")
@exit_codes
def serve(
    storage: str,
    host: str,
    port: int,
    token_env: str,
    allow_host: tuple[str, ...],
    behind_tls: bool,
    kubeconfig: str | None,
    ray_address: str | None,
) -> int:
    """Show experiments in a browser, and start, stop and resume them there."""
    from raytune_autotuner.storage import Storage
    from raytune_autotuner.web.server import listen
    from raytune_autotuner.web.server import serve as serve_until_ended
    from raytune_autotuner.web.settings import Settings, token_for

    token, made = token_for(host, os.environ, token_env)
    opened = Storage(storage)
    _ = opened.opened  # says at once when it cannot be
    listening = listen(host, port)
    at = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"Experiments in {opened.location()}: http://{shown}:{at}")
    if made:
        click.echo(f"Token (shown this once): {token}")
    settings = Settings(opened, host, at, token, frozenset(allow_host), kubeconfig, ray_address, behind_tls)
    serve_until_ended(settings, listening)
    return OK
