"""The OTLP sink: takes records over the network and says yes once they are stored."""
