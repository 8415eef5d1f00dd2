"""Questions to the trail as text: ``actor:ada status:5xx -event:order.*``, and as SQL.

Private: ``docs/api.md`` lists the public modules.
"""
