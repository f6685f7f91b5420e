# The image: `make image`, then `make image-train CONFIG=configs/vae/mnist.yaml`, which is
#   docker run --rm --init --gpus all --ipc=host --stop-timeout 60 --env-file .env --user "$(id -u):$(id -g)" \
#     -v "$PWD/runs:/app/runs" -v "$PWD/data:/app/data" vae-lightning train -c configs/vae/mnist.yaml
# The CUDA libraries come with torch's wheels, the driver from the host. A key of W&B's is given at run time alone, by
# --env-file: what is written here, or built in, stays in the image's layers.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# uv in an environment of its own: the image gets the other one
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir --disable-pip-version-check uv==0.13.9 && \
    python3 -m venv --without-pip /opt/venv
ENV VIRTUAL_ENV=/opt/venv UV_LINK_MODE=copy UV_NO_CACHE=1
# dependencies first: a change of the code does not install them again
COPY requirements.lock /src/
RUN /opt/uv/bin/uv pip install --require-hashes --compile-bytecode -r /src/requirements.lock
COPY pyproject.toml README.md LICENSE /src/
COPY vae_lightning /src/vae_lightning
COPY configs /src/configs
RUN /opt/uv/bin/uv pip install --no-deps --compile-bytecode /src

FROM ${BASE_IMAGE}
# a C and a C++ compiler, for torch.compile
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libc6-dev && rm -rf /var/lib/apt/lists/*
# Any user may run it (--user). The name is given here, for programs that ask for one; a user who may not write to the
# home gets a private one at each start.
RUN useradd --create-home --uid 1000 vae && mkdir -p /app/runs /app/data && chown -R vae:vae /app && \
    chmod 1777 /app/runs /app/data
COPY --from=build /opt/venv /opt/venv
COPY --chown=vae:vae configs /app/configs
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/home/vae USER=vae VAE_LIGHTNING_IMAGE=1
USER vae
# No VOLUME: Docker would put runs without -v into a volume without a name, and --rm would remove it. The program says
# at its start that nothing is mounted at /app/runs.
WORKDIR /app
# exec form: no shell stands between the signals and the program
ENTRYPOINT ["vae-lightning"]
CMD ["--help"]
