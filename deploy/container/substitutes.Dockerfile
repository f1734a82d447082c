# Substitutes of DynamoDB, SQS (target node) and S3 (target s3), of the versions that the tests use: for deploy/compose.yaml, never for data.
FROM node:20-bookworm-slim AS node
WORKDIR /substitutes
COPY .ci/aws/package.json .ci/aws/package-lock.json .ci/aws/.npmrc ./
RUN npm ci --ignore-scripts --no-progress
USER node

FROM golang:1.26 AS build
RUN CGO_ENABLED=0 go install github.com/versity/versitygw/cmd/versitygw@v1.8.0 && mkdir /objects

FROM gcr.io/distroless/static-debian12 AS s3
COPY --from=build /go/bin/versitygw /versitygw
COPY --from=build /objects /objects
ENTRYPOINT ["/versitygw"]
