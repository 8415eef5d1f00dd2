-- Streams: what leaves the trail in the ledger's order, and how far each one is.

CREATE TABLE audit.streams (
    name          text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
    settings      jsonb NOT NULL CHECK (octet_length(settings::text) <= 16384),
    origin        text NOT NULL DEFAULT '',
    next_leaf     bigint NOT NULL CHECK (next_leaf >= 0),
    leaf_hash     bytea CHECK (octet_length(leaf_hash) = 32),
    turn          bigint NOT NULL DEFAULT 1,
    sent          bigint NOT NULL DEFAULT 0,
    parked        bigint NOT NULL DEFAULT 0,
    is_paused     boolean NOT NULL DEFAULT false,
    moved_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    recorded_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.streams IS
    'Each stream''s position: next_leaf is the first leaf that its destination has not acknowledged, '
    'leaf_hash the one before it, origin the log''s name; turn counts from 1, one more with each rewind.';
CREATE TRIGGER refuse_change BEFORE DELETE OR TRUNCATE ON audit.streams
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
ALTER TABLE audit.streams ENABLE ALWAYS TRIGGER refuse_change;

CREATE TABLE audit.stream_parked (
    stream       text NOT NULL,
    leaf         bigint NOT NULL CHECK (leaf >= 0),
    turn         bigint NOT NULL,
    record_id    uuid NOT NULL,
    reason       text NOT NULL CHECK (octet_length(reason) <= 8192),
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (stream, turn, leaf)
);
COMMENT ON TABLE audit.stream_parked IS
    'Events that a destination refuses: the stream went on without them, and the trail has them.';
SELECT audit.guard('audit.stream_parked');

-- Makes a stream, or says what its settings are now; each is a record. NULL for start: from now on.
CREATE FUNCTION audit.open_stream(stream text, said jsonb, start bigint DEFAULT NULL)
RETURNS audit.streams
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found audit.streams;
    size bigint := (SELECT coalesce(max(c.size), 0) FROM audit.ledger_checkpoints c);
BEGIN
    SELECT * INTO found FROM audit.streams s WHERE s.name = stream FOR UPDATE;
    IF found.name IS NULL THEN
        start := coalesce(start, size);
        IF start NOT BETWEEN 0 AND size THEN
            RAISE EXCEPTION 'stream %: the log has % leaves, so that none begins at %',
                stream, size, start USING ERRCODE = 'OA002';
        END IF;
        INSERT INTO audit.streams (name, settings, origin, next_leaf) VALUES (
            stream, said, coalesce((SELECT l.origin FROM audit.ledger_log l), ''), start)
        ON CONFLICT DO NOTHING RETURNING * INTO found;
        IF found.name IS NULL THEN
            -- somebody else was quicker
            SELECT * INTO found FROM audit.streams s WHERE s.name = stream;
            RETURN found;
        END IF;
        PERFORM audit.record_event('audit.destination.created', 'CREATE', 'audit_stream', stream,
            jsonb_build_object('settings', said, 'next_leaf', start), NULL);
    ELSIF found.settings <> said THEN
        PERFORM audit.record_event('audit.destination.changed', 'UPDATE', 'audit_stream', stream,
            jsonb_build_object('settings', said, 'before', found.settings), NULL);
        UPDATE audit.streams s SET settings = said WHERE s.name = stream RETURNING * INTO found;
    END IF;
    RETURN found;
END
$$;
COMMENT ON FUNCTION audit.open_stream(text, jsonb, bigint) IS
    'Makes a stream, or takes its settings as they are now; a record tells either.';

-- Only from where it was: whoever lost the stream to another process moves nothing.
CREATE FUNCTION audit.advance_stream(
    stream text, in_turn bigint, from_leaf bigint, to_leaf bigint, hash bytea, log text,
    events bigint, refused jsonb
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_leaf < from_leaf
        OR to_leaf > (SELECT coalesce(max(c.size), 0) FROM audit.ledger_checkpoints c) THEN
        RAISE EXCEPTION 'stream %: a position lies within what is sealed, and goes forward', stream
            USING ERRCODE = 'OA002';
    END IF;
    UPDATE audit.streams s
    SET next_leaf = to_leaf, leaf_hash = hash, origin = log, sent = s.sent + events,
        parked = s.parked + jsonb_array_length(refused), moved_at = clock_timestamp()
    WHERE s.name = stream AND s.turn = in_turn AND s.next_leaf = from_leaf;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO audit.stream_parked (stream, turn, leaf, record_id, reason)
    SELECT advance_stream.stream, in_turn, (one ->> 'leaf')::bigint, (one ->> 'id')::uuid,
           left(one ->> 'reason', 2000)
    FROM jsonb_array_elements(refused) AS one;
    RETURN true;
END
$$;
COMMENT ON FUNCTION audit.advance_stream(text, bigint, bigint, bigint, bytea, text, bigint, jsonb) IS
    'Moves a stream''s position from where it was, and says what its destination refused.';

CREATE FUNCTION audit.pause_stream(stream text, paused boolean) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE audit.streams s SET is_paused = paused WHERE s.name = stream AND s.is_paused <> paused;
    IF NOT FOUND THEN
        IF EXISTS (SELECT FROM audit.streams s WHERE s.name = stream) THEN
            RETURN NULL;
        END IF;
        RAISE EXCEPTION 'there is no stream %', stream USING ERRCODE = 'OA002';
    END IF;
    RETURN audit.record_event(
        CASE WHEN paused THEN 'audit.destination.paused' ELSE 'audit.destination.resumed' END,
        'UPDATE', 'audit_stream', stream, '{}', NULL);
END
$$;
COMMENT ON FUNCTION audit.pause_stream(text, boolean) IS
    'Pauses or resumes a stream; a record tells it. NULL: it was so already.';

CREATE FUNCTION audit.rewind_stream(stream text, to_leaf bigint, reason text) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found audit.streams;
    size bigint := (SELECT coalesce(max(c.size), 0) FROM audit.ledger_checkpoints c);
BEGIN
    SELECT * INTO found FROM audit.streams s WHERE s.name = stream FOR UPDATE;
    IF found.name IS NULL THEN
        RAISE EXCEPTION 'there is no stream %', stream USING ERRCODE = 'OA002';
    END IF;
    IF to_leaf NOT BETWEEN 0 AND least(found.next_leaf, size) THEN
        RAISE EXCEPTION 'stream % is at leaf %, the log has % leaves: it is rewound to one before '
            'both, not to %', stream, found.next_leaf, size, to_leaf USING ERRCODE = 'OA002';
    END IF;
    UPDATE audit.streams s
    SET next_leaf = to_leaf, leaf_hash = NULL, turn = s.turn + 1,
        origin = coalesce((SELECT l.origin FROM audit.ledger_log l), '')
    WHERE s.name = stream;
    RETURN audit.record_event('audit.destination.rewound', 'UPDATE', 'audit_stream', stream,
        jsonb_build_object('from_leaf', found.next_leaf, 'to_leaf', to_leaf, 'reason', reason), NULL);
END
$$;
COMMENT ON FUNCTION audit.rewind_stream(text, bigint, text) IS
    'Lets a stream send again from a leaf on; a record tells it.';

CREATE FUNCTION audit.test_stream(stream text) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM audit.streams s WHERE s.name = stream) THEN
        RAISE EXCEPTION 'there is no stream %', stream USING ERRCODE = 'OA002';
    END IF;
    RETURN audit.record_event('audit.destination.tested', 'EXECUTE', 'audit_stream', stream, '{}', NULL);
END
$$;
COMMENT ON FUNCTION audit.test_stream(text) IS
    'Records a test event, which takes the way of any other once it is sealed.';

REVOKE ALL ON FUNCTION audit.open_stream(text, jsonb, bigint),
    audit.advance_stream(text, bigint, bigint, bigint, bytea, text, bigint, jsonb),
    audit.pause_stream(text, boolean), audit.rewind_stream(text, bigint, text),
    audit.test_stream(text)
FROM PUBLIC;
