# The learner: journal and trainer, with torch for the CPU. Built from the root of the tree:
#
#   docker build -f deploy/docker/learner.Dockerfile -t turnwise-learner .
#   docker run -p 50050:50050 --shm-size 1g -v $PWD/bot:/etc/turnwise:ro -v journal:/var/lib/turnwise \
#       turnwise-learner --tls-cert /etc/turnwise/server.pem --tls-key /etc/turnwise/server.key \
#       --credentials /etc/turnwise/credentials.json
#
# Certificates, keys and tokens come with the folder at run time; none is in the image.

FROM python:3.12-slim-bookworm AS build
# HTTP/2 is compiled. Debian keeps one version of the compiler: none to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libnghttp2-dev libssl-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE constraints.txt ./
COPY client client
COPY actor actor
COPY learner learner
COPY deploy/turnwise_deploy deploy/turnwise_deploy
# A +cpu build ranks above the plain one of the same version, so pip takes torch from there, without CUDA.
RUN TURNWISE_COMPILE=yes pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m venv /opt/turnwise \
    && /opt/turnwise/bin/pip install --no-cache-dir -c constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu "$(echo /wheels/turnwise-*.whl)[learner]"

FROM python:3.12-slim-bookworm
# tini reaps what the trainer's own children leave behind. Debian keeps one version of each: none to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnghttp2-14 libssl3 tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/turnwise --create-home turnwise
COPY --from=build /opt/turnwise /opt/turnwise
ENV PATH=/opt/turnwise/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /var/lib/turnwise
# The journal, which everything else can be made from. On a disk of the machine: SQLite's journal does not
# work on network filesystems.
VOLUME /var/lib/turnwise
EXPOSE 50050
ENTRYPOINT ["tini", "--", "python", "-m", "turnwise_learner", "--domain", "/etc/turnwise/domain.yaml", \
    "--data", "/var/lib/turnwise", "--listen", "0.0.0.0:50050"]
CMD ["--help"]
# The learner saves a checkpoint. Give it `docker stop --time 60`.
STOPSIGNAL SIGTERM
# With TLS, TURNWISE_CA names the CA (and TURNWISE_CERT, TURNWISE_KEY a client's pair, for mutual TLS).
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "turnwise_deploy.health", "localhost:50050"]
