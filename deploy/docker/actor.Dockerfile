# An actor: answers dialogue turns. Neither torch nor Ray is in it. Built from the root of the tree:
#
#   docker build -f deploy/docker/actor.Dockerfile -t turnwise-actor .
#   docker run -p 50051:50051 -v $PWD/bot:/etc/turnwise:ro -v spool:/var/lib/turnwise turnwise-actor \
#       --learner learner.example.org:50050 --learner-ca /etc/turnwise/ca.pem \
#       --learner-credentials /etc/turnwise/actor.token --tls-cert /etc/turnwise/server.pem \
#       --tls-key /etc/turnwise/server.key --credentials /etc/turnwise/credentials.json
#
# Certificates, keys and tokens come with the folder at run time; none is in the image.

FROM python:3.12-slim-bookworm AS build
# The turn path is compiled. Debian keeps one version of the compiler: none to pin.
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
RUN TURNWISE_COMPILE=yes pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m venv /opt/turnwise \
    && /opt/turnwise/bin/pip install --no-cache-dir -c constraints.txt "$(echo /wheels/turnwise-*.whl)[actor]"

FROM python:3.12-slim-bookworm
# Debian keeps one version of each: none to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnghttp2-14 libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/turnwise --create-home turnwise
COPY --from=build /opt/turnwise /opt/turnwise
ENV PATH=/opt/turnwise/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /var/lib/turnwise
# Facts that the learner has not acknowledged lie here: keep it, or lose them with the container.
VOLUME /var/lib/turnwise
EXPOSE 50051
# What is asked for more than once counts the last time, so each of these can be said otherwise.
ENTRYPOINT ["python", "-m", "turnwise_actor", "--domain", "/etc/turnwise/domain.yaml", \
    "--keys", "/etc/turnwise/token-keys.json", "--listen", "0.0.0.0:50051", "--spool", "/var/lib/turnwise/spool"]
CMD ["--help"]
# The actor drains: calls in flight are answered, facts sent on. Give it `docker stop --time 30`.
STOPSIGNAL SIGTERM
# With TLS, TURNWISE_CA names the CA (and TURNWISE_CERT, TURNWISE_KEY a client's pair, for mutual TLS).
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-m", "turnwise_deploy.health", "localhost:50051", "--service", "turnwise.v1.Dialogue"]
