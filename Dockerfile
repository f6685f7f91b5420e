# make train on a cloud GPU:
#   docker build -t vae-lightning .
#   mkdir -p runs data && chmod 777 runs data     # the image's user is not yours
#   docker run --gpus all --ipc=host --stop-timeout 60 -v "$PWD/runs:/app/runs" -v "$PWD/data:/app/data" \
#     vae-lightning train -c configs/vae/mnist.yaml
# The CUDA libraries come with torch's wheels, the driver from the host. A W&B key is given at run time alone: add
# --env-file with a line WANDB_API_KEY=... to docker run.
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE} AS build
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check uv
ENV VIRTUAL_ENV=/opt/venv UV_LINK_MODE=copy UV_NO_CACHE=1
# dependencies first: a change of the code does not install them again
COPY requirements.lock /src/
RUN /opt/venv/bin/uv pip install --require-hashes --compile-bytecode -r /src/requirements.lock
COPY pyproject.toml README.md LICENSE /src/
COPY vae_lightning /src/vae_lightning
COPY configs /src/configs
RUN /opt/venv/bin/uv pip install --no-deps --compile-bytecode /src

FROM ${BASE_IMAGE}
# a compiler, for torch.compile
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 vae && mkdir -p /app/runs /app/data && chown -R vae:vae /app
COPY --from=build /opt/venv /opt/venv
COPY --chown=vae:vae configs /app/configs
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER vae
WORKDIR /app
VOLUME ["/app/runs", "/app/data"]
ENTRYPOINT ["vae-lightning"]
CMD ["--help"]
