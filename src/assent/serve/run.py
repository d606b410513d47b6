"""`assent serve`: a reward model over HTTP, from its folder to the last answer."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from assent.config import ModelConfig, ServeConfig
from assent.errors import ConfigError
from assent.foreign import hide, named

if TYPE_CHECKING:
    from assent.serve.app import Service

log = logging.getLogger(__name__)

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
USUAL_LONGEST = 8192
"""Tokens, where the model would read more and nothing is asked for."""


def serve(config: ServeConfig) -> None:
    """Serves until it is asked to stop. Raises ConfigError for an address that cannot be had or a key that is none, and
    where the extra is not installed; ModelError for what is no reward model; DrainError where requests were left."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"assent serve needs {', '.join(missing)}. Install it with: pip install 'assent[serve]'")
    key = key_of(config)
    with listener(config.host, config.port) as place:
        from assent.serve.server import run

        service = service_of(config, key)
        try:
            run(service.app, place, service.queue, config.drain, lambda: _introduce(config, place, service, bool(key)))
        finally:
            service.close()


def key_of(config: ServeConfig) -> str:
    """The key that clients must send; "" for none. Raises ConfigError where its variable has none."""
    if config.key_env is None:
        return ""
    key = os.environ.get(config.key_env, "")
    if not key or not key.isascii() or not key.isprintable() or key != key.strip():
        got = "is not set, or empty" if not key else "has characters that no header can carry, such as a line end"
        raise ConfigError(f"--key_env: the environment variable {config.key_env} {got}.")
    hide(key)
    return key


def listener(host: str, port: int) -> socket.socket:
    """The address, bound so that nobody else gets it while a model loads. Raises ConfigError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, number, _, address = found[0]
        made = socket.socket(family, kind, number)
    except OSError as error:
        raise ConfigError(f"--host {host}: {named(error)}.") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except (OSError, OverflowError) as error:
        made.close()
        raise ConfigError(
            f"--host {host} --port {port} cannot be listened on: {named(error)}. --port 0 takes a free port."
        ) from None
    return made


def url_of(place: socket.socket) -> str:
    """The address as a URL."""
    host, port = place.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def service_of(config: ServeConfig, key: str = "") -> Service:
    """The model as an application."""
    from assent import distributed
    from assent.data.chat import Chat
    from assent.models.gated import GatedScoreModel
    from assent.models.heads import load_score_model
    from assent.models.loading import load_tokenizer, quiet_transformers
    from assent.rewards.build import reweight
    from assent.serve.app import Service
    from assent.serve.queue import Queue
    from assent.serve.scorer import Reader, Scorer
    from assent.serve.shapes import About, activation_of

    quiet_transformers()
    world = distributed.init(config.threads)
    if world.size > 1:
        raise ConfigError(f"assent serve is one process; it was started as {world.size}. Start it without torchrun.")
    source = ModelConfig(
        config.model,
        precision=config.precision,
        layout=config.layout,
        trust_remote_code=config.trust_remote_code,
    )
    longest = _longest(config, source)
    tokenizer = load_tokenizer(source)
    model = load_score_model(
        source, tokenizer, max_length=longest, device=world.device, trainable=False, new_head=False
    )
    reweight(model, config.weights, config.model, "--weights")
    scorer = Scorer(model)
    reader = Reader(
        Chat(tokenizer),
        vocabulary=model.plain.get_input_embeddings().num_embeddings,
        longest=longest,
        micro_tokens=config.micro_tokens,
        flat=not model.tree,
        gated=isinstance(model, GatedScoreModel) and model.gated,
    )
    about = About(
        name=config.name or config.model,
        path=config.model,
        outputs=scorer.names,
        has_reward=scorer.has_reward,
        activation=activation_of(getattr(model.plain.config, "problem_type", None), len(scorer.names)),
        longest=longest,
        started=int(time.time()),
    )
    queue = Queue(
        scorer.values,
        micro_tokens=config.micro_tokens,
        wait=config.wait_ms / 1e3,
        requests=config.limits.requests,
        tokens=config.limits.queue_tokens,
    )
    return Service(about, reader, queue, config.limits, key=key, log_every=config.log_every)


def _longest(config: ServeConfig, source: ModelConfig) -> int:
    """The most tokens in one text. Raises ConfigError where more are asked for than the model reads."""
    from assent.models.folders import rope_limit
    from assent.models.loading import stored_config

    stored = stored_config(source)
    limits = [getattr(stored.get_text_config(), "max_position_embeddings", None), rope_limit(stored)]
    most = min((limit for limit in limits if limit is not None and limit > 0), default=None)
    asked = config.limits.tokens
    if asked is not None and most is not None and asked > most:
        raise ConfigError(f"--limits.tokens {asked}: {config.model} reads at most {most} tokens.")
    return asked or min(most or USUAL_LONGEST, USUAL_LONGEST)


def _introduce(config: ServeConfig, place: socket.socket, service: Service, has_key: bool) -> None:
    from assent.serve.shapes import SHAPES

    limits, about = config.limits, service.about
    log.info(f"Serving {config.model} at {url_of(place)}{f' as {about.name}' if config.name else ''}")
    if len(about.outputs) > 1:
        log.info(f"Outputs: {', '.join(about.outputs)}")
    if not about.has_reward:
        log.warning("nobody has said how they become one reward (--weights): only /classify and /pooling answer")
    log.info("Shapes: " + ", ".join(f"{shape.path} ({shape.whose})" for shape in SHAPES))
    log.info(
        f"Limits: {about.longest:,} tokens a text, {limits.texts:,} texts and {limits.bytes:,} bytes a request, "
        f"{limits.requests:,} requests and {limits.queue_tokens:,} tokens under way, "
        + (f"{limits.rate:g} requests a second from one address; " if limits.rate else "")
        + ("with a key" if has_key else "without a key")
    )
    with suppress(OSError, ValueError):
        print(url_of(place), flush=True)
