"""Identity: who does an action, for which tenant, from where.

Private: ``docs/api.md`` lists the public modules.
"""
