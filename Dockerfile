# The gateway's image: one stage builds the wheel and a virtual environment from the hash-locked requirements, the other
# holds that environment and nothing to build with. tests/deploy runs these lines without a container engine.
#
# The base is pinned by tag, so that a rebuild takes its security updates. To pin the very bytes instead, look the digest
# up where you build (`docker buildx imagetools inspect python:3.11-slim-bookworm`) and write it behind both tags, as
# python:3.11-slim-bookworm@sha256:..., then let a bot raise it.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src

# What changes seldom comes first. /tools builds; /venv is what runs, and never has pip in it.
COPY requirements-build.lock requirements.lock ./
RUN python3 -m venv /tools \
 && /tools/bin/pip install -q --require-hashes --only-binary :all: -r requirements-build.lock \
 && python3 -m venv --without-pip /venv \
 && /tools/bin/pip --python /venv/bin/python3 install -q --require-hashes --only-binary :all: -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY app app
# Byte code is compiled here, once: the running container writes none.
RUN /tools/bin/pip wheel -q --no-deps --no-build-isolation --wheel-dir /dist . \
 && /tools/bin/pip --python /venv/bin/python3 install -q --no-deps --no-index --compile /dist/*.whl


FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="kontext-gateway" \
      org.opencontainers.image.description="A self-hosted gateway for FLUX.1 Kontext on Prodia." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11-slim-bookworm"

# The base image's own installers go too; what they installed is not needed to run.
RUN python3 -m pip uninstall -q --yes --root-user-action=ignore pip setuptools wheel
COPY --from=build /venv /venv
# The one directory besides /tmp that is written; a volume mounted here takes over its owner and mode.
RUN install -d -o 65532 -g 65532 -m 0700 /data

ENV PATH=/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GATEWAY_DATA_DIR=/data

# By number, so that an orchestrator can see that it is not root.
USER 65532:65532
# Public calls. The ops listener (8081) is on loopback unless GATEWAY_OPS_LISTEN says otherwise, and is not for publishing.
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["kontext-gateway", "health"]
ENTRYPOINT ["kontext-gateway"]
CMD ["serve"]
