# syntax=docker/dockerfile:1.7
# Two images: `docker build --target cpu -t penstock:0.1.0-cpu .` and `--target cuda -t penstock:0.1.0-cuda`. Any process of Penstock's runs in
# either; the engine on a GPU needs the second. They run as nobody in particular, on a read-only root: docs/operations.md says what must be writable.

FROM python:3.11.13-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/penstock/bin:$PATH

FROM base AS dependencies
WORKDIR /src
RUN python -m venv /opt/penstock
COPY pyproject.toml constraints.txt ./
# What it stands on changes seldom, and is a layer of its own.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt

# torch without CUDA's libraries, which are most of the other image.
FROM dependencies AS build-cpu
RUN pip install -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch==2.13.0 \
    && pip install -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY app app
COPY workers workers
COPY migrations migrations
RUN pip install --no-deps .

# torch from PyPI brings CUDA's libraries along: the machine needs the driver and NVIDIA's container toolkit only.
FROM dependencies AS build-cuda
RUN pip install -c constraints.txt torch==2.13.0 \
    && pip install -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY app app
COPY workers workers
COPY migrations migrations
RUN pip install --no-deps .

FROM base AS runtime
# g++: the engine's kernels for a CPU, and Triton's launchers, are compiled for the machine at hand, once, into /cache.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini g++ \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 penstock \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin penstock \
    && install --directory --owner=10001 --group=10001 /cache /models
ENV HOME=/tmp \
    XDG_CACHE_HOME=/cache \
    TRITON_CACHE_DIR=/cache/triton \
    HF_HOME=/models \
    PENSTOCK_DATA_DIR=/tmp/penstock \
    PENSTOCK_API_HOST=0.0.0.0 \
    PENSTOCK_PROBE_HOST=0.0.0.0
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000 9464
VOLUME ["/models"]
# The probe's port where one is set, else the API's.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-P", "-m", "app.cli.health"]
ENTRYPOINT ["tini", "--", "penstock"]
CMD ["api"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/penstock /opt/penstock

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/penstock /opt/penstock
