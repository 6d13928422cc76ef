SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.api_keys (
    id character varying(40) NOT NULL,
    owner_id character varying(40) NOT NULL,
    name text NOT NULL,
    hint character varying(16) NOT NULL,
    digest character varying(64) NOT NULL,
    scopes json NOT NULL,
    created_at timestamp with time zone NOT NULL,
    last_used_at timestamp with time zone,
    expires_at timestamp with time zone,
    revoked_at timestamp with time zone
);
CREATE TABLE public.attempts (
    id character varying(40) NOT NULL,
    job_id character varying(40) NOT NULL,
    number bigint NOT NULL,
    fence bigint NOT NULL,
    state character varying(32) NOT NULL,
    worker_id character varying(40) NOT NULL,
    host text NOT NULL,
    supervisor_pid bigint NOT NULL,
    pid bigint,
    pid_started bigint,
    started_at timestamp with time zone NOT NULL,
    heartbeat_at timestamp with time zone NOT NULL,
    progress_at timestamp with time zone,
    ended_at timestamp with time zone,
    exit_code bigint,
    signal bigint,
    failure json,
    phase text,
    step bigint,
    advanced boolean NOT NULL,
    recorded_seq bigint NOT NULL,
    resumed_from text,
    log_tail text
);
CREATE TABLE public.checkpoints (
    id character varying(40) NOT NULL,
    job_id character varying(40) NOT NULL,
    attempt bigint NOT NULL,
    phase character varying(32) NOT NULL,
    step bigint NOT NULL,
    path text NOT NULL,
    bytes bigint NOT NULL,
    manifest_sha256 character varying(64) NOT NULL,
    best boolean NOT NULL,
    resumable boolean NOT NULL,
    pinned boolean NOT NULL,
    expires_at timestamp with time zone,
    metrics json NOT NULL,
    deleting boolean NOT NULL,
    created_at timestamp with time zone NOT NULL
);
CREATE TABLE public.events (
    job_id character varying(40) NOT NULL,
    seq bigint NOT NULL,
    id character varying(40) NOT NULL,
    type character varying(32) NOT NULL,
    level character varying(16) NOT NULL,
    code character varying(100) NOT NULL,
    message text NOT NULL,
    data json NOT NULL,
    attempt bigint,
    created_at timestamp with time zone NOT NULL
);
CREATE TABLE public.files (
    id character varying(40) NOT NULL,
    owner_id character varying(40) NOT NULL,
    filename text NOT NULL,
    purpose character varying(64) NOT NULL,
    bytes bigint NOT NULL,
    sha256 character varying(64) NOT NULL,
    lines bigint,
    deleting boolean NOT NULL,
    expires_at timestamp with time zone,
    created_at timestamp with time zone NOT NULL
);
CREATE TABLE public.idempotency_keys (
    owner_id character varying(40) NOT NULL,
    method character varying(16) NOT NULL,
    path character varying(500) NOT NULL,
    key character varying(255) NOT NULL,
    fingerprint character varying(64) NOT NULL,
    status bigint,
    body text,
    created_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL
);
CREATE TABLE public.jobs (
    id character varying(40) NOT NULL,
    owner_id character varying(40) NOT NULL,
    name text,
    spec text NOT NULL,
    metadata json NOT NULL,
    seed bigint NOT NULL,
    state character varying(32) NOT NULL,
    phase text,
    desired_state character varying(32) NOT NULL,
    desired_at timestamp with time zone,
    keep character varying(32),
    priority bigint NOT NULL,
    not_before timestamp with time zone,
    dispatched_at timestamp with time zone,
    attempt bigint NOT NULL,
    fence bigint NOT NULL,
    max_attempts bigint NOT NULL,
    retries bigint NOT NULL,
    stalled bigint NOT NULL,
    resume_after_attempt bigint NOT NULL,
    forked_from character varying(40),
    max_runtime_seconds bigint,
    deadline_at timestamp with time zone,
    lease_owner character varying(40),
    lease_expires_at timestamp with time zone,
    step bigint,
    total_steps bigint,
    fraction double precision NOT NULL,
    furthest_fraction double precision NOT NULL,
    tokens_per_second double precision,
    seconds_left double precision,
    progress_at timestamp with time zone,
    metrics json NOT NULL,
    failure json,
    report json,
    student_model_id character varying(40),
    student_path text,
    student_manifest_sha256 text,
    student_manifest text,
    student_bytes bigint,
    student_parameters bigint,
    teacher_parameters bigint,
    keep_checkpoints bigint NOT NULL,
    event_seq bigint NOT NULL,
    version bigint NOT NULL,
    deleting boolean NOT NULL,
    created_at timestamp with time zone NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    updated_at timestamp with time zone NOT NULL
);
CREATE TABLE public.metric_points (
    job_id character varying(40) NOT NULL,
    attempt bigint NOT NULL,
    seq bigint NOT NULL,
    phase character varying(32) NOT NULL,
    step bigint NOT NULL,
    "values" json NOT NULL,
    created_at timestamp with time zone NOT NULL
);
CREATE TABLE public.models (
    id character varying(40) NOT NULL,
    owner_id character varying(40),
    reference character varying(500) NOT NULL,
    kind character varying(16) NOT NULL,
    name text NOT NULL,
    path text NOT NULL,
    job_id character varying(40),
    revision text,
    architecture text NOT NULL,
    causal_lm boolean NOT NULL,
    parameters bigint NOT NULL,
    layers bigint NOT NULL,
    vocab_size bigint NOT NULL,
    context_length bigint,
    tokenizer_fingerprint text,
    dtype text,
    bytes bigint NOT NULL,
    created_at timestamp with time zone NOT NULL
);
CREATE TABLE public.workers (
    id character varying(40) NOT NULL,
    host text NOT NULL,
    pid bigint NOT NULL,
    slots bigint NOT NULL,
    devices json NOT NULL,
    heartbeat_seconds double precision NOT NULL,
    started_at timestamp with time zone NOT NULL,
    heartbeat_at timestamp with time zone NOT NULL,
    stopped_at timestamp with time zone,
    draining boolean NOT NULL,
    slot_dirty text
);
INSERT INTO public.alembic_version VALUES ('0001');
INSERT INTO public.api_keys VALUES ('key_01m8eypneq9w30qh49pbq1apy5', 'usr_one', 'usr_one''s key', 'mllm_VjUf', 'effdf3b155e2de75af243bd9e6f6533c9d93d59fbdcfb4bee959a0687dcbf643', '["admin"]', '2026-11-27 16:51:31.928513+00', NULL, NULL, NULL);
INSERT INTO public.api_keys VALUES ('key_01m8eypnev1vdjxby24wdqdr7t', 'usr_two', 'usr_two''s key', 'mllm_dXoC', '2003100331ecbb9e5e908d985f4f641690ce1fae5c7c5d9b5accd2998719e7ca', '["admin"]', '2026-11-27 16:51:31.931813+00', NULL, NULL, NULL);
INSERT INTO public.attempts VALUES ('att_01m8eypngfgk3gwpmrxbctkwdr', 'job_01m8eypng0mgtrsjbvcmj419x3', 1, 1, 'succeeded', 'wrk_01m8eypnfbxr836ab247s4p8d8', 'host', 1, NULL, NULL, '2026-11-27 16:51:31.979301+00', '2026-11-27 16:51:31.979301+00', '2026-11-27 16:51:31.998475+00', '2026-11-27 16:51:32.029971+00', 0, NULL, NULL, 'training', 5, true, 6, NULL, NULL);
INSERT INTO public.attempts VALUES ('att_01m8eypnjga5t8rgcee40r6119', 'job_01m8eypnj9g623x4x5wqk2xsm9', 1, 1, 'failed', 'wrk_01m8eypnfbxr836ab247s4p8d8', 'host', 1, NULL, NULL, '2026-11-27 16:51:32.046829+00', '2026-11-27 16:51:32.046829+00', '2026-11-27 16:51:32.056399+00', '2026-11-27 16:51:32.076901+00', 70, NULL, '{"code": "internal_error", "category": "infrastructure", "message": "internal_error happened", "param": null, "retryable": false, "attempt": 1}', 'training', 5, true, 6, NULL, 'out
of
memory
');
INSERT INTO public.attempts VALUES ('att_01m8eypnm06985h18ym0pqcgx7', 'job_01m8eypnkqecsp93a11p5rkt84', 1, 1, 'failed', 'wrk_01m8eypnfbxr836ab247s4p8d8', 'host', 1, NULL, NULL, '2026-11-27 16:51:32.093991+00', '2026-11-27 16:51:32.093991+00', '2026-11-27 16:51:32.102644+00', '2026-11-27 16:51:32.123841+00', 70, NULL, '{"code": "dataset_invalid", "category": "user", "message": "dataset_invalid happened", "param": null, "retryable": false, "attempt": 1}', 'training', 5, true, 6, NULL, 'row 7
');
INSERT INTO public.attempts VALUES ('att_01m8eypnnmj9zqtgvbf5fyp0b4', 'job_01m8eypnn6pp04c1fnhavwt6wk', 1, 1, 'active', 'wrk_01m8eypnfbxr836ab247s4p8d8', 'host', 1, NULL, NULL, '2026-11-27 16:51:32.145542+00', '2026-11-27 16:51:32.145542+00', '2026-11-27 16:51:32.156058+00', NULL, NULL, NULL, NULL, 'training', 5, true, 6, NULL, NULL);
INSERT INTO public.checkpoints VALUES ('ckpt_01m8eypnk1d07xwrkdwed6demh', 'job_01m8eypnj9g623x4x5wqk2xsm9', 1, 'training', 5, 'checkpoints/training-5', 10, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', true, true, false, NULL, '{"rouge_l": 12.5}', false, '2026-11-27 16:51:32.056399+00');
INSERT INTO public.checkpoints VALUES ('ckpt_01m8eypnmgxdzmk64k4gh5etwt', 'job_01m8eypnkqecsp93a11p5rkt84', 1, 'training', 5, 'checkpoints/training-5', 10, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', true, true, false, NULL, '{"rouge_l": 12.5}', false, '2026-11-27 16:51:32.102644+00');
INSERT INTO public.checkpoints VALUES ('ckpt_01m8eypnp5t1k8t4k0eg9d0ssy', 'job_01m8eypnn6pp04c1fnhavwt6wk', 1, 'training', 5, 'checkpoints/training-5', 10, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', true, true, false, NULL, '{"rouge_l": 12.5}', false, '2026-11-27 16:51:32.156058+00');
INSERT INTO public.checkpoints VALUES ('ckpt_01m8eypnhfjwgkc8ch7ten0jwk', 'job_01m8eypng0mgtrsjbvcmj419x3', 1, 'training', 5, 'checkpoints/training-5', 10, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', true, true, true, NULL, '{"rouge_l": 12.5}', false, '2026-11-27 16:51:31.998475+00');
INSERT INTO public.events VALUES ('job_01m8eypng0mgtrsjbvcmj419x3', 1, 'evt_01m8eypng47445m9d98t7vx3mw', 'state', 'info', 'queued', 'Accepted', '{"from": null, "to": "queued", "cause": "create"}', NULL, '2026-11-27 16:51:31.972657+00');
INSERT INTO public.events VALUES ('job_01m8eypng0mgtrsjbvcmj419x3', 2, 'evt_01m8eypngm3nx6wbr3e5n7qqmm', 'state', 'info', 'starting', 'Attempt 1 started', '{"worker": "wrk_01m8eypnfbxr836ab247s4p8d8", "host": "host", "from": "queued", "to": "starting", "cause": "claim"}', 1, '2026-11-27 16:51:31.988241+00');
INSERT INTO public.events VALUES ('job_01m8eypng0mgtrsjbvcmj419x3', 3, 'evt_01m8eypngy0bvmf7gz6wtadfkq', 'state', 'info', 'running', '', '{"from": "starting", "to": "running", "cause": "first_progress"}', 1, '2026-11-27 16:51:31.998822+00');
INSERT INTO public.events VALUES ('job_01m8eypng0mgtrsjbvcmj419x3', 4, 'evt_01m8eypnh008cm9cxv31yhfbve', 'phase', 'info', 'training', '', '{}', 1, '2026-11-27 16:51:31.998475+00');
INSERT INTO public.events VALUES ('job_01m8eypng0mgtrsjbvcmj419x3', 5, 'evt_01m8eypnhhce4vtdv7wq0x8f62', 'checkpoint', 'info', 'checkpoint', 'Checkpoint at step 5', '{"checkpoint": "ckpt_01m8eypnhfjwgkc8ch7ten0jwk", "phase": "training", "step": 5, "bytes": 10, "best": true}', 1, '2026-11-27 16:51:32.01723+00');
INSERT INTO public.events VALUES ('job_01m8eypng0mgtrsjbvcmj419x3', 6, 'evt_01m8eypnhnr6t71h900my2yfkr', 'message', 'info', 'note', 'äöü ''quoted''', '{"a": [1, null]}', 1, '2026-11-27 16:51:31.998475+00');
INSERT INTO public.events VALUES ('job_01m8eypng0mgtrsjbvcmj419x3', 7, 'evt_01m8eypnhqwf3whers1g44aph8', 'student', 'info', 'student_exported', 'The student is exported', '{"parameters": 10, "teacher_parameters": 20, "bytes": 100}', 1, '2026-11-27 16:51:31.998475+00');
INSERT INTO public.events VALUES ('job_01m8eypng0mgtrsjbvcmj419x3', 8, 'evt_01m8eypnj1tjabsgxhk7d9b7mn', 'state', 'info', 'succeeded', 'The student is ready', '{"model": "model_01m8eypnhz8bh6hfee4hjf8x35", "from": "running", "to": "succeeded", "cause": "student_committed"}', 1, '2026-11-27 16:51:32.033535+00');
INSERT INTO public.events VALUES ('job_01m8eypnj9g623x4x5wqk2xsm9', 1, 'evt_01m8eypnjbfq10a3wpnh6mzb2j', 'state', 'info', 'queued', 'Accepted', '{"from": null, "to": "queued", "cause": "create"}', NULL, '2026-11-27 16:51:32.042843+00');
INSERT INTO public.events VALUES ('job_01m8eypnj9g623x4x5wqk2xsm9', 2, 'evt_01m8eypnjkkdx87cpr5e3ra7s9', 'state', 'info', 'starting', 'Attempt 1 started', '{"worker": "wrk_01m8eypnfbxr836ab247s4p8d8", "host": "host", "from": "queued", "to": "starting", "cause": "claim"}', 1, '2026-11-27 16:51:32.051433+00');
INSERT INTO public.events VALUES ('job_01m8eypnj9g623x4x5wqk2xsm9', 3, 'evt_01m8eypnjrf38ysakw87c3yb5d', 'state', 'info', 'running', '', '{"from": "starting", "to": "running", "cause": "first_progress"}', 1, '2026-11-27 16:51:32.056695+00');
INSERT INTO public.events VALUES ('job_01m8eypnj9g623x4x5wqk2xsm9', 4, 'evt_01m8eypnjts4nf74tp9aq0gf96', 'phase', 'info', 'training', '', '{}', 1, '2026-11-27 16:51:32.056399+00');
INSERT INTO public.events VALUES ('job_01m8eypnj9g623x4x5wqk2xsm9', 5, 'evt_01m8eypnk3qen2jk5jvbye19s4', 'checkpoint', 'info', 'checkpoint', 'Checkpoint at step 5', '{"checkpoint": "ckpt_01m8eypnk1d07xwrkdwed6demh", "phase": "training", "step": 5, "bytes": 10, "best": true}', 1, '2026-11-27 16:51:32.066915+00');
INSERT INTO public.events VALUES ('job_01m8eypnj9g623x4x5wqk2xsm9', 6, 'evt_01m8eypnk5h4g1kvf09evzfkjt', 'message', 'info', 'note', 'äöü ''quoted''', '{"a": [1, null]}', 1, '2026-11-27 16:51:32.056399+00');
INSERT INTO public.events VALUES ('job_01m8eypnj9g623x4x5wqk2xsm9', 7, 'evt_01m8eypnk75c5vcje6k9we3jf4', 'student', 'info', 'student_exported', 'The student is exported', '{"parameters": 10, "teacher_parameters": 20, "bytes": 100}', 1, '2026-11-27 16:51:32.056399+00');
INSERT INTO public.events VALUES ('job_01m8eypnj9g623x4x5wqk2xsm9', 8, 'evt_01m8eypnkh0e9dxr705ysccnnx', 'state', 'info', 'queued', 'internal_error happened; it is tried again in 5 s', '{"retry": 1, "not_before": "2026-11-27T16:51:37.079511+00:00", "from": "running", "to": "queued", "cause": "infrastructure_error"}', 1, '2026-11-27 16:51:32.080936+00');
INSERT INTO public.events VALUES ('job_01m8eypnkqecsp93a11p5rkt84', 1, 'evt_01m8eypnks8wx7aqrqztt6evz2', 'state', 'info', 'queued', 'Accepted', '{"from": null, "to": "queued", "cause": "create"}', NULL, '2026-11-27 16:51:32.089564+00');
INSERT INTO public.events VALUES ('job_01m8eypnkqecsp93a11p5rkt84', 2, 'evt_01m8eypnm22k7kd51g6d14h0kj', 'state', 'info', 'starting', 'Attempt 1 started', '{"worker": "wrk_01m8eypnfbxr836ab247s4p8d8", "host": "host", "from": "queued", "to": "starting", "cause": "claim"}', 1, '2026-11-27 16:51:32.09801+00');
INSERT INTO public.events VALUES ('job_01m8eypnkqecsp93a11p5rkt84', 3, 'evt_01m8eypnm7x6xa0xf40yj5savs', 'state', 'info', 'running', '', '{"from": "starting", "to": "running", "cause": "first_progress"}', 1, '2026-11-27 16:51:32.102927+00');
INSERT INTO public.events VALUES ('job_01m8eypnkqecsp93a11p5rkt84', 4, 'evt_01m8eypnm8w2y0cpmxa4t4ye5z', 'phase', 'info', 'training', '', '{}', 1, '2026-11-27 16:51:32.102644+00');
INSERT INTO public.events VALUES ('job_01m8eypnkqecsp93a11p5rkt84', 5, 'evt_01m8eypnmhb6z4whz5jw1zv8tq', 'checkpoint', 'info', 'checkpoint', 'Checkpoint at step 5', '{"checkpoint": "ckpt_01m8eypnmgxdzmk64k4gh5etwt", "phase": "training", "step": 5, "bytes": 10, "best": true}', 1, '2026-11-27 16:51:32.113404+00');
INSERT INTO public.events VALUES ('job_01m8eypnkqecsp93a11p5rkt84', 6, 'evt_01m8eypnmm7f243r6keetsrgvf', 'message', 'info', 'note', 'äöü ''quoted''', '{"a": [1, null]}', 1, '2026-11-27 16:51:32.102644+00');
INSERT INTO public.events VALUES ('job_01m8eypnkqecsp93a11p5rkt84', 7, 'evt_01m8eypnmpmpsb4dm9jsnr0px7', 'student', 'info', 'student_exported', 'The student is exported', '{"parameters": 10, "teacher_parameters": 20, "bytes": 100}', 1, '2026-11-27 16:51:32.102644+00');
INSERT INTO public.events VALUES ('job_01m8eypnkqecsp93a11p5rkt84', 8, 'evt_01m8eypnmypaqenbsdnrf7ak64', 'state', 'error', 'failed', 'dataset_invalid happened', '{"from": "running", "to": "failed", "cause": "user_error"}', 1, '2026-11-27 16:51:32.126568+00');
INSERT INTO public.events VALUES ('job_01m8eypnn6pp04c1fnhavwt6wk', 1, 'evt_01m8eypnn908hn5gpdqf9q8007', 'state', 'info', 'queued', 'Accepted', '{"from": null, "to": "queued", "cause": "create"}', NULL, '2026-11-27 16:51:32.136808+00');
INSERT INTO public.events VALUES ('job_01m8eypnn6pp04c1fnhavwt6wk', 2, 'evt_01m8eypnnp8dff9jz4z86625sr', 'state', 'info', 'starting', 'Attempt 1 started', '{"worker": "wrk_01m8eypnfbxr836ab247s4p8d8", "host": "host", "from": "queued", "to": "starting", "cause": "claim"}', 1, '2026-11-27 16:51:32.150688+00');
INSERT INTO public.events VALUES ('job_01m8eypnn6pp04c1fnhavwt6wk', 3, 'evt_01m8eypnnwh5xqecag79dz4qdf', 'state', 'info', 'running', '', '{"from": "starting", "to": "running", "cause": "first_progress"}', 1, '2026-11-27 16:51:32.156347+00');
INSERT INTO public.events VALUES ('job_01m8eypnn6pp04c1fnhavwt6wk', 4, 'evt_01m8eypnnx3nhmkmn8t4hsp4mq', 'phase', 'info', 'training', '', '{}', 1, '2026-11-27 16:51:32.156058+00');
INSERT INTO public.events VALUES ('job_01m8eypnn6pp04c1fnhavwt6wk', 5, 'evt_01m8eypnp6953bdk7fvxg7khfb', 'checkpoint', 'info', 'checkpoint', 'Checkpoint at step 5', '{"checkpoint": "ckpt_01m8eypnp5t1k8t4k0eg9d0ssy", "phase": "training", "step": 5, "bytes": 10, "best": true}', 1, '2026-11-27 16:51:32.166333+00');
INSERT INTO public.events VALUES ('job_01m8eypnn6pp04c1fnhavwt6wk', 6, 'evt_01m8eypnp8rsjfsnn3a8p2mn0v', 'message', 'info', 'note', 'äöü ''quoted''', '{"a": [1, null]}', 1, '2026-11-27 16:51:32.156058+00');
INSERT INTO public.events VALUES ('job_01m8eypnn6pp04c1fnhavwt6wk', 7, 'evt_01m8eypnpa0j2k0x78h9gf75we', 'student', 'info', 'student_exported', 'The student is exported', '{"parameters": 10, "teacher_parameters": 20, "bytes": 100}', 1, '2026-11-27 16:51:32.156058+00');
INSERT INTO public.events VALUES ('job_01m8eypnpjdmk8s7a2rw9yga55', 1, 'evt_01m8eypnpmrsb7m2sncf6103g9', 'state', 'info', 'queued', 'Accepted', '{"from": null, "to": "queued", "cause": "create"}', NULL, '2026-11-27 16:51:32.179922+00');
INSERT INTO public.events VALUES ('job_01m8eypnpjdmk8s7a2rw9yga55', 2, 'evt_01m8eypnpy9gyh2zq5ebqcjp1x', 'state', 'info', 'paused', 'Paused', '{"from": "queued", "to": "paused", "cause": "pause"}', NULL, '2026-11-27 16:51:32.190604+00');
INSERT INTO public.events VALUES ('job_01m8eypnqnkmw3fyezcehfyc1a', 1, 'evt_01m8eypnqptybez8gdvekmmr1t', 'state', 'info', 'queued', 'Accepted', '{"from": null, "to": "queued", "cause": "create"}', NULL, '2026-11-27 16:51:32.214703+00');
INSERT INTO public.files VALUES ('file_01m8eypnewynx806eehwp2v0zt', 'usr_one', 'dataset äöü ''quoted''.jsonl', 'dataset', 10, 'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee', 2, false, '2126-11-03 16:51:31.933118+00', '2026-11-27 16:51:31.933461+00');
INSERT INTO public.files VALUES ('file_01m8eypnezzae2nnsw1pepnfx6', 'usr_one', 'corpus äöü ''quoted''.jsonl', 'corpus', 10, 'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee', 2, false, '2126-11-03 16:51:31.935945+00', '2026-11-27 16:51:31.936395+00');
INSERT INTO public.files VALUES ('file_01m8eypnf1ta6rdhv3ckyz99rt', 'usr_one', 'calibration äöü ''quoted''.jsonl', 'calibration', 10, 'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee', 2, false, '2126-11-03 16:51:31.937455+00', '2026-11-27 16:51:31.937758+00');
INSERT INTO public.files VALUES ('file_01m8eypnf2znhr5r3b0wsy249r', 'usr_two', 'dataset äöü ''quoted''.jsonl', 'dataset', 10, 'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee', 2, false, '2126-11-03 16:51:31.938723+00', '2026-11-27 16:51:31.938993+00');
INSERT INTO public.files VALUES ('file_01m8eypnf34fp6zyhrajdmp3h0', 'usr_two', 'corpus äöü ''quoted''.jsonl', 'corpus', 10, 'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee', 2, false, '2126-11-03 16:51:31.939927+00', '2026-11-27 16:51:31.940243+00');
INSERT INTO public.files VALUES ('file_01m8eypnf56x92cwaas1mvn5vq', 'usr_two', 'calibration äöü ''quoted''.jsonl', 'calibration', 10, 'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee', 2, false, '2126-11-03 16:51:31.941249+00', '2026-11-27 16:51:31.941514+00');
INSERT INTO public.idempotency_keys VALUES ('usr_one', 'POST', '/v1/jobs', 'once', 'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff', 201, '{"object": "job"}', '2026-11-27 16:51:31.953463+00', '2026-11-28 16:51:31.958637+00');
INSERT INTO public.jobs VALUES ('job_01m8eypng0mgtrsjbvcmj419x3', 'usr_one', 'a job', '{"name":"a job","seed":0,"metadata":{"team":"search"},"teacher":{"model":"path:teacher","revision":null,"dtype":null,"adapter":null},"student":{"model":"path:student","revision":null,"prune_teacher":null,"lora":null},"dataset":{"file":"file_01m8eypnewynx806eehwp2v0zt","template":"chat","dev_fraction":0.05,"max_dev_rows":1000},"pretrain_corpus":{"file":"file_01m8eypnezzae2nnsw1pepnfx6"},"method":{"temperature":1.0,"top_k":0,"top_p":1.0,"type":"minillm","recipe":"default","teacher_mix_alpha":null,"rollouts_per_round":null,"inner_epochs":null,"cliprange":null,"clip":null,"clip_sign":null,"reward_scale":null,"reward_clip":null,"reward_baseline":null,"reward_start":null,"gamma":null,"length_norm":null,"whitening":null,"long_part":null,"single_step":null,"single_step_weighted":null,"lm_coef":null,"kd_ratio":null},"training":{"max_steps":1000,"rows_per_step":64,"learning_rate":5e-6,"schedule":"constant","warmup_steps":0,"weight_decay":1e-6,"betas":[0.9,0.95],"grad_clip":1.0,"max_prompt_tokens":256,"max_new_tokens":256,"dtype":"bfloat16","activation_checkpointing":false,"micro_batch_tokens":8192,"decode_batch_rows":64,"decode_dtype":null,"eval_every":null,"save_every":null,"keep_checkpoints":2,"student_sft":{"max_steps":null,"epochs":3.0,"learning_rate":0.00005,"rows_per_step":32,"eval_every":null,"schedule":"cosine","warmup_steps":0,"weight_decay":0.01},"teacher_sft":null},"guards":{"enabled":true,"min_effective_sample_size":0.05,"max_length_drift":4.0,"max_repetition":0.5,"patience":3},"resources":{"gpus":1,"zero_stage":1,"cpu_offload":false},"scheduling":{"priority":0,"max_runtime_seconds":null,"max_attempts":3},"evaluation":{"metrics":["rouge_l","divergence"],"max_rows":200,"seeds":[10],"decoding":"sample","temperature":1.0,"no_repeat_ngram_size":0,"samples":4,"calibration_file":"file_01m8eypnf1ta6rdhv3ckyz99rt"},"export":{"formats":["safetensors"],"dtype":null}}', '{"team": "search"}', 0, 'succeeded', NULL, 'run', NULL, NULL, 0, NULL, NULL, 1, 1, 3, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, 5, 10, 1, 1, NULL, NULL, '2026-11-27 16:51:31.998475+00', '{"loss": 1.5, "reverse_kl": 0.25}', NULL, '{"rouge_l": {"before": 1.0, "after": 2.0}}', 'model_01m8eypnhz8bh6hfee4hjf8x35', 'runs/job_01m8eypng0mgtrsjbvcmj419x3/1/student', 'bbac868521fea6adc181c1c7e41808f12c26d15e7f2f9b015928b3e355248e9c', '{
 "created_at": "2026-01-01T00:00:00Z",
 "data": {},
 "files": [
  {
   "bytes": 100,
   "name": "model.safetensors",
   "sha256": "0000000000000000000000000000000000000000000000000000000000000000"
  }
 ],
 "kind": "student"
}
', 100, 10, 20, 2, 8, 12, false, '2026-11-27 16:51:31.968599+00', '2026-11-27 16:51:31.979301+00', '2026-11-27 16:51:32.033535+00', '2026-11-27 16:51:32.033535+00');
INSERT INTO public.jobs VALUES ('job_01m8eypnj9g623x4x5wqk2xsm9', 'usr_one', 'a job', '{"name":"a job","seed":0,"metadata":{"team":"search"},"teacher":{"model":"path:teacher","revision":null,"dtype":null,"adapter":null},"student":{"model":"path:student","revision":null,"prune_teacher":null,"lora":null},"dataset":{"file":"file_01m8eypnewynx806eehwp2v0zt","template":"chat","dev_fraction":0.05,"max_dev_rows":1000},"pretrain_corpus":{"file":"file_01m8eypnezzae2nnsw1pepnfx6"},"method":{"temperature":1.0,"top_k":0,"top_p":1.0,"type":"minillm","recipe":"default","teacher_mix_alpha":null,"rollouts_per_round":null,"inner_epochs":null,"cliprange":null,"clip":null,"clip_sign":null,"reward_scale":null,"reward_clip":null,"reward_baseline":null,"reward_start":null,"gamma":null,"length_norm":null,"whitening":null,"long_part":null,"single_step":null,"single_step_weighted":null,"lm_coef":null,"kd_ratio":null},"training":{"max_steps":1000,"rows_per_step":64,"learning_rate":5e-6,"schedule":"constant","warmup_steps":0,"weight_decay":1e-6,"betas":[0.9,0.95],"grad_clip":1.0,"max_prompt_tokens":256,"max_new_tokens":256,"dtype":"bfloat16","activation_checkpointing":false,"micro_batch_tokens":8192,"decode_batch_rows":64,"decode_dtype":null,"eval_every":null,"save_every":null,"keep_checkpoints":2,"student_sft":{"max_steps":null,"epochs":3.0,"learning_rate":0.00005,"rows_per_step":32,"eval_every":null,"schedule":"cosine","warmup_steps":0,"weight_decay":0.01},"teacher_sft":null},"guards":{"enabled":true,"min_effective_sample_size":0.05,"max_length_drift":4.0,"max_repetition":0.5,"patience":3},"resources":{"gpus":1,"zero_stage":1,"cpu_offload":false},"scheduling":{"priority":5,"max_runtime_seconds":3600,"max_attempts":3},"evaluation":{"metrics":["rouge_l","divergence"],"max_rows":200,"seeds":[10],"decoding":"sample","temperature":1.0,"no_repeat_ngram_size":0,"samples":4,"calibration_file":"file_01m8eypnf1ta6rdhv3ckyz99rt"},"export":{"formats":["safetensors"],"dtype":null}}', '{"team": "search"}', 0, 'queued', NULL, 'run', NULL, NULL, 5, '2026-11-27 16:51:37.079511+00', NULL, 1, 1, 3, 1, 0, 0, NULL, 3600, '2026-11-27 17:51:32.046829+00', NULL, NULL, 5, 10, 0.5, 0.5, NULL, NULL, '2026-11-27 16:51:32.056399+00', '{"loss": 1.5, "reverse_kl": 0.25}', '{"code": "internal_error", "category": "infrastructure", "message": "internal_error happened", "param": null, "retryable": true, "attempt": 1}', '{"rouge_l": {"before": 1.0, "after": 2.0}}', NULL, 'runs/job_01m8eypnj9g623x4x5wqk2xsm9/1/student', 'bbac868521fea6adc181c1c7e41808f12c26d15e7f2f9b015928b3e355248e9c', NULL, 100, 10, 20, 2, 8, 13, false, '2026-11-27 16:51:32.040971+00', '2026-11-27 16:51:32.046829+00', NULL, '2026-11-27 16:51:32.080936+00');
INSERT INTO public.jobs VALUES ('job_01m8eypnkqecsp93a11p5rkt84', 'usr_two', 'a job', '{"name":"a job","seed":0,"metadata":{"team":"search"},"teacher":{"model":"path:teacher","revision":null,"dtype":null,"adapter":null},"student":{"model":"path:student","revision":null,"prune_teacher":null,"lora":null},"dataset":{"file":"file_01m8eypnf2znhr5r3b0wsy249r","template":"chat","dev_fraction":0.05,"max_dev_rows":1000},"pretrain_corpus":{"file":"file_01m8eypnf34fp6zyhrajdmp3h0"},"method":{"temperature":1.0,"top_k":0,"top_p":1.0,"type":"minillm","recipe":"default","teacher_mix_alpha":null,"rollouts_per_round":null,"inner_epochs":null,"cliprange":null,"clip":null,"clip_sign":null,"reward_scale":null,"reward_clip":null,"reward_baseline":null,"reward_start":null,"gamma":null,"length_norm":null,"whitening":null,"long_part":null,"single_step":null,"single_step_weighted":null,"lm_coef":null,"kd_ratio":null},"training":{"max_steps":1000,"rows_per_step":64,"learning_rate":5e-6,"schedule":"constant","warmup_steps":0,"weight_decay":1e-6,"betas":[0.9,0.95],"grad_clip":1.0,"max_prompt_tokens":256,"max_new_tokens":256,"dtype":"bfloat16","activation_checkpointing":false,"micro_batch_tokens":8192,"decode_batch_rows":64,"decode_dtype":null,"eval_every":null,"save_every":null,"keep_checkpoints":2,"student_sft":{"max_steps":null,"epochs":3.0,"learning_rate":0.00005,"rows_per_step":32,"eval_every":null,"schedule":"cosine","warmup_steps":0,"weight_decay":0.01},"teacher_sft":null},"guards":{"enabled":true,"min_effective_sample_size":0.05,"max_length_drift":4.0,"max_repetition":0.5,"patience":3},"resources":{"gpus":1,"zero_stage":1,"cpu_offload":false},"scheduling":{"priority":0,"max_runtime_seconds":null,"max_attempts":3},"evaluation":{"metrics":["rouge_l","divergence"],"max_rows":200,"seeds":[10],"decoding":"sample","temperature":1.0,"no_repeat_ngram_size":0,"samples":4,"calibration_file":"file_01m8eypnf56x92cwaas1mvn5vq"},"export":{"formats":["safetensors"],"dtype":null}}', '{"team": "search"}', 0, 'failed', NULL, 'run', NULL, NULL, 0, NULL, NULL, 1, 1, 3, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, 5, 10, 0.5, 0.5, NULL, NULL, '2026-11-27 16:51:32.102644+00', '{"loss": 1.5, "reverse_kl": 0.25}', '{"code": "dataset_invalid", "category": "user", "message": "dataset_invalid happened", "param": null, "retryable": false, "attempt": 1}', '{"rouge_l": {"before": 1.0, "after": 2.0}}', NULL, 'runs/job_01m8eypnkqecsp93a11p5rkt84/1/student', 'bbac868521fea6adc181c1c7e41808f12c26d15e7f2f9b015928b3e355248e9c', NULL, 100, 10, 20, 2, 8, 12, false, '2026-11-27 16:51:32.08769+00', '2026-11-27 16:51:32.093991+00', '2026-11-27 16:51:32.126568+00', '2026-11-27 16:51:32.126568+00');
INSERT INTO public.jobs VALUES ('job_01m8eypnn6pp04c1fnhavwt6wk', 'usr_two', 'a job', '{"name":"a job","seed":0,"metadata":{"team":"search"},"teacher":{"model":"path:teacher","revision":null,"dtype":null,"adapter":null},"student":{"model":"path:student","revision":null,"prune_teacher":null,"lora":null},"dataset":{"file":"file_01m8eypnf2znhr5r3b0wsy249r","template":"chat","dev_fraction":0.05,"max_dev_rows":1000},"pretrain_corpus":{"file":"file_01m8eypnf34fp6zyhrajdmp3h0"},"method":{"temperature":1.0,"top_k":0,"top_p":1.0,"type":"minillm","recipe":"default","teacher_mix_alpha":null,"rollouts_per_round":null,"inner_epochs":null,"cliprange":null,"clip":null,"clip_sign":null,"reward_scale":null,"reward_clip":null,"reward_baseline":null,"reward_start":null,"gamma":null,"length_norm":null,"whitening":null,"long_part":null,"single_step":null,"single_step_weighted":null,"lm_coef":null,"kd_ratio":null},"training":{"max_steps":1000,"rows_per_step":64,"learning_rate":5e-6,"schedule":"constant","warmup_steps":0,"weight_decay":1e-6,"betas":[0.9,0.95],"grad_clip":1.0,"max_prompt_tokens":256,"max_new_tokens":256,"dtype":"bfloat16","activation_checkpointing":false,"micro_batch_tokens":8192,"decode_batch_rows":64,"decode_dtype":null,"eval_every":null,"save_every":null,"keep_checkpoints":2,"student_sft":{"max_steps":null,"epochs":3.0,"learning_rate":0.00005,"rows_per_step":32,"eval_every":null,"schedule":"cosine","warmup_steps":0,"weight_decay":0.01},"teacher_sft":null},"guards":{"enabled":true,"min_effective_sample_size":0.05,"max_length_drift":4.0,"max_repetition":0.5,"patience":3},"resources":{"gpus":1,"zero_stage":1,"cpu_offload":false},"scheduling":{"priority":0,"max_runtime_seconds":null,"max_attempts":3},"evaluation":{"metrics":["rouge_l","divergence"],"max_rows":200,"seeds":[10],"decoding":"sample","temperature":1.0,"no_repeat_ngram_size":0,"samples":4,"calibration_file":"file_01m8eypnf56x92cwaas1mvn5vq"},"export":{"formats":["safetensors"],"dtype":null}}', '{"team": "search"}', 0, 'running', 'training', 'run', NULL, NULL, 0, NULL, NULL, 1, 1, 3, 0, 0, 0, NULL, NULL, NULL, 'wrk_01m8eypnfbxr836ab247s4p8d8', '2126-09-23 00:51:32.145542+00', 5, 10, 0.5, 0.5, NULL, NULL, '2026-11-27 16:51:32.156058+00', '{"loss": 1.5, "reverse_kl": 0.25}', NULL, '{"rouge_l": {"before": 1.0, "after": 2.0}}', NULL, 'runs/job_01m8eypnn6pp04c1fnhavwt6wk/1/student', 'bbac868521fea6adc181c1c7e41808f12c26d15e7f2f9b015928b3e355248e9c', NULL, 100, 10, 20, 2, 7, 10, false, '2026-11-27 16:51:32.134494+00', '2026-11-27 16:51:32.145542+00', NULL, '2026-11-27 16:51:32.156058+00');
INSERT INTO public.jobs VALUES ('job_01m8eypnpjdmk8s7a2rw9yga55', 'usr_two', 'a job', '{"name":"a job","seed":0,"metadata":{"team":"search"},"teacher":{"model":"path:teacher","revision":null,"dtype":null,"adapter":null},"student":{"model":null,"revision":null,"prune_teacher":{"layers":2},"lora":null},"dataset":{"file":"file_01m8eypnf2znhr5r3b0wsy249r","template":"chat","dev_fraction":0.05,"max_dev_rows":1000},"pretrain_corpus":{"file":"file_01m8eypnf34fp6zyhrajdmp3h0"},"method":{"temperature":1.0,"top_k":0,"top_p":1.0,"type":"minillm","recipe":"default","teacher_mix_alpha":null,"rollouts_per_round":null,"inner_epochs":null,"cliprange":null,"clip":null,"clip_sign":null,"reward_scale":null,"reward_clip":null,"reward_baseline":null,"reward_start":null,"gamma":null,"length_norm":null,"whitening":null,"long_part":null,"single_step":null,"single_step_weighted":null,"lm_coef":null,"kd_ratio":null},"training":{"max_steps":1000,"rows_per_step":64,"learning_rate":5e-6,"schedule":"constant","warmup_steps":0,"weight_decay":1e-6,"betas":[0.9,0.95],"grad_clip":1.0,"max_prompt_tokens":256,"max_new_tokens":256,"dtype":"bfloat16","activation_checkpointing":false,"micro_batch_tokens":8192,"decode_batch_rows":64,"decode_dtype":null,"eval_every":null,"save_every":null,"keep_checkpoints":2,"student_sft":{"max_steps":null,"epochs":3.0,"learning_rate":0.00005,"rows_per_step":32,"eval_every":null,"schedule":"cosine","warmup_steps":0,"weight_decay":0.01},"teacher_sft":null},"guards":{"enabled":true,"min_effective_sample_size":0.05,"max_length_drift":4.0,"max_repetition":0.5,"patience":3},"resources":{"gpus":1,"zero_stage":1,"cpu_offload":false},"scheduling":{"priority":0,"max_runtime_seconds":null,"max_attempts":3},"evaluation":{"metrics":["rouge_l","divergence"],"max_rows":200,"seeds":[10],"decoding":"sample","temperature":1.0,"no_repeat_ngram_size":0,"samples":4,"calibration_file":"file_01m8eypnf56x92cwaas1mvn5vq"},"export":{"formats":["safetensors"],"dtype":null}}', '{"team": "search"}', 0, 'paused', NULL, 'pause', '2026-11-27 16:51:32.18887+00', NULL, 0, NULL, NULL, 0, 0, 3, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, NULL, NULL, NULL, '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 2, 2, 5, false, '2026-11-27 16:51:32.178098+00', NULL, NULL, '2026-11-27 16:51:32.190604+00');
INSERT INTO public.jobs VALUES ('job_01m8eypnqnkmw3fyezcehfyc1a', 'usr_one', NULL, '{"name":null,"seed":0,"metadata":{},"teacher":{"model":"model_01m8eypnhz8bh6hfee4hjf8x35","revision":null,"dtype":null,"adapter":null},"student":{"model":"path:student","revision":null,"prune_teacher":null,"lora":null},"dataset":{"file":"file_01m8eypnewynx806eehwp2v0zt","template":"chat","dev_fraction":0.05,"max_dev_rows":1000},"pretrain_corpus":null,"method":{"type":"kd","kd_ratio":0.5,"divergence":"forward_kl","temperature":1.0,"jsd_beta":0.5,"skew_alpha":0.1},"training":{"max_steps":1000,"rows_per_step":64,"learning_rate":5e-6,"schedule":"constant","warmup_steps":0,"weight_decay":1e-6,"betas":[0.9,0.95],"grad_clip":1.0,"max_prompt_tokens":256,"max_new_tokens":256,"dtype":"bfloat16","activation_checkpointing":false,"micro_batch_tokens":8192,"decode_batch_rows":64,"decode_dtype":null,"eval_every":null,"save_every":null,"keep_checkpoints":2,"student_sft":{"max_steps":null,"epochs":3.0,"learning_rate":0.00005,"rows_per_step":32,"eval_every":null,"schedule":"cosine","warmup_steps":0,"weight_decay":0.01},"teacher_sft":null},"guards":{"enabled":true,"min_effective_sample_size":0.05,"max_length_drift":4.0,"max_repetition":0.5,"patience":3},"resources":{"gpus":1,"zero_stage":1,"cpu_offload":false},"scheduling":{"priority":0,"max_runtime_seconds":null,"max_attempts":3},"evaluation":{"metrics":["rouge_l","divergence"],"max_rows":200,"seeds":[10],"decoding":"sample","temperature":1.0,"no_repeat_ngram_size":0,"samples":4,"calibration_file":null},"export":{"formats":["safetensors"],"dtype":null}}', '{}', 0, 'queued', NULL, 'run', NULL, NULL, 0, NULL, NULL, 0, 0, 3, 0, 0, 0, 'ckpt_01m8eypnhfjwgkc8ch7ten0jwk', NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, NULL, NULL, NULL, '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 2, 1, 2, false, '2026-11-27 16:51:32.212939+00', NULL, NULL, '2026-11-27 16:51:32.214703+00');
INSERT INTO public.metric_points VALUES ('job_01m8eypng0mgtrsjbvcmj419x3', 1, 3, 'training', 5, '{"loss": 1.5, "reverse_kl": 0.25}', '2026-11-27 16:51:31.998475+00');
INSERT INTO public.metric_points VALUES ('job_01m8eypnj9g623x4x5wqk2xsm9', 1, 3, 'training', 5, '{"loss": 1.5, "reverse_kl": 0.25}', '2026-11-27 16:51:32.056399+00');
INSERT INTO public.metric_points VALUES ('job_01m8eypnkqecsp93a11p5rkt84', 1, 3, 'training', 5, '{"loss": 1.5, "reverse_kl": 0.25}', '2026-11-27 16:51:32.102644+00');
INSERT INTO public.metric_points VALUES ('job_01m8eypnn6pp04c1fnhavwt6wk', 1, 3, 'training', 5, '{"loss": 1.5, "reverse_kl": 0.25}', '2026-11-27 16:51:32.156058+00');
INSERT INTO public.models VALUES ('model_01m8eypnf8bc41tgf1pzh3x5ge', NULL, 'path:teacher', 'base', 'teacher', 'teacher', NULL, 'main', 'LlamaForCausalLM', true, 10, 2, 32, 64, 'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff', 'float32', 100, '2026-11-27 16:51:31.945059+00');
INSERT INTO public.models VALUES ('model_01m8eypnhz8bh6hfee4hjf8x35', 'usr_one', 'model_01m8eypnhz8bh6hfee4hjf8x35', 'student', 'a job', 'runs/job_01m8eypng0mgtrsjbvcmj419x3/1/student', 'job_01m8eypng0mgtrsjbvcmj419x3', NULL, 'LlamaForCausalLM', true, 10, 2, 32, 64, 'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff', 'float32', 100, '2026-11-27 16:51:32.031176+00');
INSERT INTO public.workers VALUES ('wrk_01m8eypnfbxr836ab247s4p8d8', 'host', 2, 1, '{"cpus": 2, "gpus": [{"index": "0", "memory": 17179869184}, {"index": "1", "memory": 17179869184}]}', 5, '2026-11-27 16:51:31.947281+00', '2026-11-27 16:51:31.947281+00', NULL, false, NULL);
INSERT INTO public.workers VALUES ('wrk_01m8eypnfdxyefeny951p9k329', 'host', 1, 1, '{}', 5, '2026-11-27 16:51:31.949268+00', '2026-11-27 16:51:31.949268+00', '2026-11-27 16:51:31.952016+00', false, NULL);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT pk_api_keys PRIMARY KEY (id);
ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT pk_attempts PRIMARY KEY (id);
ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT pk_checkpoints PRIMARY KEY (id);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT pk_events PRIMARY KEY (job_id, seq);
ALTER TABLE ONLY public.files
    ADD CONSTRAINT pk_files PRIMARY KEY (id);
ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT pk_idempotency_keys PRIMARY KEY (owner_id, method, path, key);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT pk_jobs PRIMARY KEY (id);
ALTER TABLE ONLY public.metric_points
    ADD CONSTRAINT pk_metric_points PRIMARY KEY (job_id, attempt, seq);
ALTER TABLE ONLY public.models
    ADD CONSTRAINT pk_models PRIMARY KEY (id);
ALTER TABLE ONLY public.workers
    ADD CONSTRAINT pk_workers PRIMARY KEY (id);
ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT uq_api_keys_digest UNIQUE (digest);
ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT uq_attempts_job_id_number UNIQUE (job_id, number);
ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT uq_checkpoints_job_id_attempt_path UNIQUE (job_id, attempt, path);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT uq_events_id UNIQUE (id);
ALTER TABLE ONLY public.models
    ADD CONSTRAINT uq_models_reference UNIQUE (reference);
CREATE INDEX ix_files_owner_id_created_at_id ON public.files USING btree (owner_id, created_at, id);
CREATE INDEX ix_idempotency_keys_expires_at ON public.idempotency_keys USING btree (expires_at);
CREATE INDEX ix_jobs_lease_expires_at ON public.jobs USING btree (lease_expires_at);
CREATE INDEX ix_jobs_owner_id_created_at_id ON public.jobs USING btree (owner_id, created_at, id);
CREATE INDEX ix_jobs_state_priority_created_at_id ON public.jobs USING btree (state, priority, created_at, id);
CREATE INDEX ix_models_created_at_id ON public.models USING btree (created_at, id);
ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT fk_attempts_job_id FOREIGN KEY (job_id) REFERENCES public.jobs(id) ON DELETE CASCADE;
ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT fk_checkpoints_job_id FOREIGN KEY (job_id) REFERENCES public.jobs(id) ON DELETE CASCADE;
ALTER TABLE ONLY public.events
    ADD CONSTRAINT fk_events_job_id FOREIGN KEY (job_id) REFERENCES public.jobs(id) ON DELETE CASCADE;
ALTER TABLE ONLY public.metric_points
    ADD CONSTRAINT fk_metric_points_job_id FOREIGN KEY (job_id) REFERENCES public.jobs(id) ON DELETE CASCADE;
