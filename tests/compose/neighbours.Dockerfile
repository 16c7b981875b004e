# Stand-ins for what pipelines and files may need outside: S3 (moto's server), a mail server (aiosmtpd), a web site.
ARG PYTHON_IMAGE=python:3.13-slim-trixie
FROM ${PYTHON_IMAGE}
COPY requirements/dev.txt /tmp/
RUN --mount=type=cache,target=/root/.cache/pip python -m venv /opt/neighbours \
 && grep -E '^[a-z0-9]' /tmp/dev.txt | sed 's/ *\\$//' > /tmp/versions.txt \
 && /opt/neighbours/bin/pip install --quiet --disable-pip-version-check --only-binary :all: -c /tmp/versions.txt \
    "moto[server]" aiosmtpd
ENV PATH=/opt/neighbours/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
