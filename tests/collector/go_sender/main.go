// A program of another language: the stock OpenTelemetry SDK, and no code of ours. It tells the
// audit trail what it did by marking a span and setting the attributes that say who did what.
//
// OTEL_EXPORTER_OTLP_ENDPOINT names the Collector; the request's id is the first argument.
package main

import (
	"context"
	"log"
	"os"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
)

func main() {
	ctx := context.Background()
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		log.Fatal(err)
	}
	provider := trace.NewTracerProvider(
		trace.WithBatcher(exporter),
		trace.WithResource(resource.NewSchemaless(attribute.String("service.name", "billing-go"))),
	)
	_, span := provider.Tracer("billing").Start(ctx, "invoice.approved")
	span.SetAttributes(
		attribute.Bool("audit.flagged", true),
		attribute.String("audit.actor.id", "u-42"),
		attribute.String("audit.actor.type", "user"),
		attribute.String("audit.action", "UPDATE"),
		attribute.String("audit.outcome", "success"),
		// all that follows is optional
		attribute.String("audit.tenant.id", "acme"),
		attribute.String("audit.target.type", "invoice"),
		attribute.String("audit.target.id", "4711"),
		attribute.String("audit.request.id", os.Args[1]),
		attribute.String("audit.metadata", `{"amount":"12.50","currency":"EUR"}`),
		attribute.StringSlice("user.roles", []string{"clerk", "approver"}),
	)
	span.End()
	// without it the last batch stays in memory, and a failure unsaid
	if err := provider.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
}
