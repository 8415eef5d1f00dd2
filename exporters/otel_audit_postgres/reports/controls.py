"""Controls of standards that reports support, and their limits."""

from __future__ import annotations

from typing import Final

from otel_audit_postgres.reports.model import Control

_NIST: Final = "NIST SP 800-53"
_SOC: Final = "SOC 2"
_ISO: Final = "ISO/IEC 27001:2022 A."
_HIPAA: Final = "HIPAA 45 CFR"
_GDPR: Final = "GDPR Art."
_PCI: Final = "PCI DSS 4.0"

INTEGRITY: Final = (
    Control(f"{_NIST} AU-9, AU-10", "strong", "rows are hashed again and compared with the ledger"),
    Control(f"{_ISO}8.15", "partial", "shows that logs are protected; not that all is logged"),
    Control(f"{_PCI} 10.3.4", "strong", "changes of stored records show"),
)
RIGHTS: Final = (
    Control(f"{_NIST} AC-2(4)", "strong", "each change of a right that the application made"),
    Control(f"{_SOC} CC6.2, CC6.3", "partial", "changes, not the state of all rights"),
    Control(f"{_ISO}5.18", "partial", "changes made past the application are not seen"),
)
SIGN_INS: Final = (
    Control(f"{_NIST} AC-7, AU-2", "partial", "sign-ins that pass the application"),
    Control(f"{_PCI} 10.2.1.4", "strong", "failed attempts by actor and source"),
    Control(f"{_SOC} CC6.1", "partial", "what the identity provider refuses is not seen"),
)
SENSITIVE: Final = (
    Control(f"{_HIPAA} 164.312(b)", "strong", "who saw what, as far as the policy records reads"),
    Control(f"{_GDPR} 5(1)(f), 32", "partial", "access, not whether it was needed"),
    Control(f"{_PCI} 10.2.1.1", "strong", "individual access to recorded data"),
)
CHANGES: Final = (
    Control("SOX 404 (ITGC, change of data)", "partial", "before, after, who; not the reason"),
    Control(f"{_SOC} CC8.1", "partial", "changes of data, not of programs"),
    Control("21 CFR Part 11 11.10(e)", "strong", "before and after with time and person"),
)
SUBJECT: Final = (
    Control(f"{_GDPR} 15(1)", "partial", "what the trail holds; other systems are to be asked"),
    Control(f"{_HIPAA} 164.528", "partial", "disclosures that passed the application"),
)
WATCHERS: Final = (
    Control(f"{_NIST} AU-9(4), AU-12", "strong", "each look through this software"),
    Control(f"{_PCI} 10.2.1.3", "strong", "access to the audit trail itself"),
)
REVIEW: Final = (
    Control(f"{_NIST} AU-6", "partial", "the sample and the sign-off; not how well it was read"),
    Control(f"{_PCI} 10.4.1", "partial", "a periodic review, not a daily one of everything"),
    Control(f"{_SOC} CC4.1, CC7.2", "partial", "evidence of monitoring"),
)
INCIDENT: Final = (
    Control(f"{_NIST} IR-4, IR-5", "partial", "what happened in the application"),
    Control(f"{_GDPR} 33(3)", "partial", "subjects touched, as far as records name them"),
    Control(f"{_ISO}5.28", "strong", "each record can be proved by itself"),
)
DISPOSAL: Final = (
    Control(f"{_NIST} AU-11", "strong", "what is kept, archived and dropped, by month"),
    Control(f"{_GDPR} 5(1)(e)", "partial", "of the trail itself only"),
)
COVERAGE: Final = (
    Control(f"{_NIST} AU-2, AU-3", "partial", "a route that was never called is not here"),
    Control(f"{_ISO}8.15", "partial", "which events are logged, at which level"),
)  # fmt: skip
