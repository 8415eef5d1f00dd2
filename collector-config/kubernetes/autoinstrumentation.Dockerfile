# What the OpenTelemetry operator copies into Python pods: the packages of auto-instrumentation with
# our plugin among them. Some are compiled, so the Python here must be of the application's minor
# version, and its libc of the same kind. Build it in the repository's root:
#
#   docker build -f collector-config/kubernetes/autoinstrumentation.Dockerfile \
#     --build-arg PYTHON=3.12 -t registry.example.com/otel-audit-autoinstrumentation-python:0.1.0 .
ARG PYTHON=3.12
FROM python:${PYTHON} AS build
COPY . /src
RUN pip install --no-cache-dir --target /autoinstrumentation \
    '/src[otlp,sqlalchemy]' opentelemetry-distro opentelemetry-exporter-otlp-proto-http \
    opentelemetry-instrumentation-asgi opentelemetry-instrumentation-fastapi \
    opentelemetry-instrumentation-sqlalchemy \
    # the application brings its own
    && rm -rf /autoinstrumentation/sqlalchemy /autoinstrumentation/sqlalchemy-*.dist-info

# the operator runs `cp -r /autoinstrumentation` in it
FROM busybox
COPY --from=build /autoinstrumentation /autoinstrumentation
RUN chmod -R go+r /autoinstrumentation
