BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE api_keys (
	id VARCHAR(40) NOT NULL, 
	owner_id VARCHAR(40) NOT NULL, 
	name TEXT NOT NULL, 
	hint VARCHAR(16) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	scopes JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	last_used_at DATETIME, 
	expires_at DATETIME, 
	revoked_at DATETIME, 
	CONSTRAINT pk_api_keys PRIMARY KEY (id), 
	CONSTRAINT uq_api_keys_digest UNIQUE (digest)
);
INSERT INTO "api_keys" VALUES('key_01m8eypn4xvcsq5yxgfpv00syk','usr_one','usr_one''s key','mllm_7Tgv','a01c862287b287bd9fcf7c083ac84a0cf86dfc96c71ed78439f21e4fea1d0e3e','["admin"]','2026-11-27 16:51:31.614000',NULL,NULL,NULL);
INSERT INTO "api_keys" VALUES('key_01m8eypn5cbsxejzs5x2gkp14e','usr_two','usr_two''s key','mllm_v3g1','89294d9f21ebeaec08111438855f1d00fff0cea01d98d8395347aecea99f0197','["admin"]','2026-11-27 16:51:31.628000',NULL,NULL,NULL);
CREATE TABLE attempts (
	id VARCHAR(40) NOT NULL, 
	job_id VARCHAR(40) NOT NULL, 
	number BIGINT NOT NULL, 
	fence BIGINT NOT NULL, 
	state VARCHAR(32) NOT NULL, 
	worker_id VARCHAR(40) NOT NULL, 
	host TEXT NOT NULL, 
	supervisor_pid BIGINT NOT NULL, 
	pid BIGINT, 
	pid_started BIGINT, 
	started_at DATETIME NOT NULL, 
	heartbeat_at DATETIME NOT NULL, 
	progress_at DATETIME, 
	ended_at DATETIME, 
	exit_code BIGINT, 
	signal BIGINT, 
	failure JSON, 
	phase TEXT, 
	step BIGINT, 
	advanced BOOLEAN NOT NULL, 
	recorded_seq BIGINT NOT NULL, 
	resumed_from TEXT, 
	log_tail TEXT, 
	CONSTRAINT pk_attempts PRIMARY KEY (id), 
	CONSTRAINT fk_attempts_job_id FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE, 
	CONSTRAINT uq_attempts_job_id_number UNIQUE (job_id, number)
);
INSERT INTO "attempts" VALUES('att_01m8eypn6d4bhkecdwb8vp7wak','job_01m8eypn618682tzf6hskbff2h',1,1,'succeeded','wrk_01m8eypn5mbdzm1sb9bshfwdja','host',1,NULL,NULL,'2026-11-27 16:51:31.656000','2026-11-27 16:51:31.656000','2026-11-27 16:51:31.673000','2026-11-27 16:51:31.690000',0,NULL,NULL,'training',5,1,6,NULL,NULL);
INSERT INTO "attempts" VALUES('att_01m8eypn7k4n27s82604pvxgj1','job_01m8eypn7fw22my91m736x0x9e',1,1,'failed','wrk_01m8eypn5mbdzm1sb9bshfwdja','host',1,NULL,NULL,'2026-11-27 16:51:31.698000','2026-11-27 16:51:31.698000','2026-11-27 16:51:31.702000','2026-11-27 16:51:31.708000',70,NULL,'{"code": "internal_error", "category": "infrastructure", "message": "internal_error happened", "param": null, "retryable": false, "attempt": 1}','training',5,1,6,NULL,'out
of
memory
');
INSERT INTO "attempts" VALUES('att_01m8eypn85kr38h0x8kdhwkb23','job_01m8eypn82r13h2bfp1eth4zwz',1,1,'failed','wrk_01m8eypn5mbdzm1sb9bshfwdja','host',1,NULL,NULL,'2026-11-27 16:51:31.716000','2026-11-27 16:51:31.716000','2026-11-27 16:51:31.720000','2026-11-27 16:51:31.729000',70,NULL,'{"code": "dataset_invalid", "category": "user", "message": "dataset_invalid happened", "param": null, "retryable": false, "attempt": 1}','training',5,1,6,NULL,'row 7
');
INSERT INTO "attempts" VALUES('att_01m8eypn8ve6081nd9maqvbzre','job_01m8eypn8qxwb07axtaaprfacm',1,1,'active','wrk_01m8eypn5mbdzm1sb9bshfwdja','host',1,NULL,NULL,'2026-11-27 16:51:31.738000','2026-11-27 16:51:31.738000','2026-11-27 16:51:31.742000',NULL,NULL,NULL,NULL,'training',5,1,6,NULL,NULL);
CREATE TABLE checkpoints (
	id VARCHAR(40) NOT NULL, 
	job_id VARCHAR(40) NOT NULL, 
	attempt BIGINT NOT NULL, 
	phase VARCHAR(32) NOT NULL, 
	step BIGINT NOT NULL, 
	path TEXT NOT NULL, 
	bytes BIGINT NOT NULL, 
	manifest_sha256 VARCHAR(64) NOT NULL, 
	best BOOLEAN NOT NULL, 
	resumable BOOLEAN NOT NULL, 
	pinned BOOLEAN NOT NULL, 
	expires_at DATETIME, 
	metrics JSON NOT NULL, 
	deleting BOOLEAN NOT NULL, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_checkpoints PRIMARY KEY (id), 
	CONSTRAINT fk_checkpoints_job_id FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE, 
	CONSTRAINT uq_checkpoints_job_id_attempt_path UNIQUE (job_id, attempt, path)
);
INSERT INTO "checkpoints" VALUES('ckpt_01m8eypn72gayrf2z7xmg8z4e7','job_01m8eypn618682tzf6hskbff2h',1,'training',5,'checkpoints/training-5',10,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',1,1,1,NULL,'{"rouge_l": 12.5}',0,'2026-11-27 16:51:31.673000');
INSERT INTO "checkpoints" VALUES('ckpt_01m8eypn7sjygbq4djmcak7yhq','job_01m8eypn7fw22my91m736x0x9e',1,'training',5,'checkpoints/training-5',10,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',1,1,0,NULL,'{"rouge_l": 12.5}',0,'2026-11-27 16:51:31.702000');
INSERT INTO "checkpoints" VALUES('ckpt_01m8eypn8cc359f64dwba2zt7a','job_01m8eypn82r13h2bfp1eth4zwz',1,'training',5,'checkpoints/training-5',10,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',1,1,0,NULL,'{"rouge_l": 12.5}',0,'2026-11-27 16:51:31.720000');
INSERT INTO "checkpoints" VALUES('ckpt_01m8eypn92e2y6gfqgwpbdvd2q','job_01m8eypn8qxwb07axtaaprfacm',1,'training',5,'checkpoints/training-5',10,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',1,1,0,NULL,'{"rouge_l": 12.5}',0,'2026-11-27 16:51:31.742000');
CREATE TABLE events (
	job_id VARCHAR(40) NOT NULL, 
	seq BIGINT NOT NULL, 
	id VARCHAR(40) NOT NULL, 
	type VARCHAR(32) NOT NULL, 
	level VARCHAR(16) NOT NULL, 
	code VARCHAR(100) NOT NULL, 
	message TEXT NOT NULL, 
	data JSON NOT NULL, 
	attempt BIGINT, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_events PRIMARY KEY (job_id, seq), 
	CONSTRAINT fk_events_job_id FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE, 
	CONSTRAINT uq_events_id UNIQUE (id)
);
INSERT INTO "events" VALUES('job_01m8eypn618682tzf6hskbff2h',1,'evt_01m8eypn64s1cy7vjksgqge43x','state','info','queued','Accepted','{"from": null, "to": "queued", "cause": "create"}',NULL,'2026-11-27 16:51:31.652000');
INSERT INTO "events" VALUES('job_01m8eypn618682tzf6hskbff2h',2,'evt_01m8eypn6he556na4pbt2zn692','state','info','starting','Attempt 1 started','{"worker": "wrk_01m8eypn5mbdzm1sb9bshfwdja", "host": "host", "from": "queued", "to": "starting", "cause": "claim"}',1,'2026-11-27 16:51:31.665000');
INSERT INTO "events" VALUES('job_01m8eypn618682tzf6hskbff2h',3,'evt_01m8eypn6shjx136y32xt4y76b','state','info','running','','{"from": "starting", "to": "running", "cause": "first_progress"}',1,'2026-11-27 16:51:31.673000');
INSERT INTO "events" VALUES('job_01m8eypn618682tzf6hskbff2h',4,'evt_01m8eypn6t9bc0q1fqay23124y','phase','info','training','','{}',1,'2026-11-27 16:51:31.673000');
INSERT INTO "events" VALUES('job_01m8eypn618682tzf6hskbff2h',5,'evt_01m8eypn73ttmr0b6q7rb6ajwb','checkpoint','info','checkpoint','Checkpoint at step 5','{"checkpoint": "ckpt_01m8eypn72gayrf2z7xmg8z4e7", "phase": "training", "step": 5, "bytes": 10, "best": true}',1,'2026-11-27 16:51:31.683000');
INSERT INTO "events" VALUES('job_01m8eypn618682tzf6hskbff2h',6,'evt_01m8eypn76ywf33r2cvth7ee1n','message','info','note','äöü ''quoted''','{"a": [1, null]}',1,'2026-11-27 16:51:31.673000');
INSERT INTO "events" VALUES('job_01m8eypn618682tzf6hskbff2h',7,'evt_01m8eypn770xderkekkycwqsep','student','info','student_exported','The student is exported','{"parameters": 10, "teacher_parameters": 20, "bytes": 100}',1,'2026-11-27 16:51:31.673000');
INSERT INTO "events" VALUES('job_01m8eypn618682tzf6hskbff2h',8,'evt_01m8eypn7b957s3ks3bjb5z3eq','state','info','succeeded','The student is ready','{"model": "model_01m8eypn7a86hst5sefyv7709v", "from": "running", "to": "succeeded", "cause": "student_committed"}',1,'2026-11-27 16:51:31.691000');
INSERT INTO "events" VALUES('job_01m8eypn7fw22my91m736x0x9e',1,'evt_01m8eypn7fw2315az4nc24eyw9','state','info','queued','Accepted','{"from": null, "to": "queued", "cause": "create"}',NULL,'2026-11-27 16:51:31.695000');
INSERT INTO "events" VALUES('job_01m8eypn7fw22my91m736x0x9e',2,'evt_01m8eypn7mvgj6rg1vv5qx4qr6','state','info','starting','Attempt 1 started','{"worker": "wrk_01m8eypn5mbdzm1sb9bshfwdja", "host": "host", "from": "queued", "to": "starting", "cause": "claim"}',1,'2026-11-27 16:51:31.700000');
INSERT INTO "events" VALUES('job_01m8eypn7fw22my91m736x0x9e',3,'evt_01m8eypn7p94cdjgb8ae72p3sn','state','info','running','','{"from": "starting", "to": "running", "cause": "first_progress"}',1,'2026-11-27 16:51:31.702000');
INSERT INTO "events" VALUES('job_01m8eypn7fw22my91m736x0x9e',4,'evt_01m8eypn7p94ctee79jrdys6r8','phase','info','training','','{}',1,'2026-11-27 16:51:31.702000');
INSERT INTO "events" VALUES('job_01m8eypn7fw22my91m736x0x9e',5,'evt_01m8eypn7sjygddpabx6xgrsb7','checkpoint','info','checkpoint','Checkpoint at step 5','{"checkpoint": "ckpt_01m8eypn7sjygbq4djmcak7yhq", "phase": "training", "step": 5, "bytes": 10, "best": true}',1,'2026-11-27 16:51:31.705000');
INSERT INTO "events" VALUES('job_01m8eypn7fw22my91m736x0x9e',6,'evt_01m8eypn7tnenqnbdfjz4p5b0y','message','info','note','äöü ''quoted''','{"a": [1, null]}',1,'2026-11-27 16:51:31.702000');
INSERT INTO "events" VALUES('job_01m8eypn7fw22my91m736x0x9e',7,'evt_01m8eypn7vv7eg4ymg3wxr9w3f','student','info','student_exported','The student is exported','{"parameters": 10, "teacher_parameters": 20, "bytes": 100}',1,'2026-11-27 16:51:31.702000');
INSERT INTO "events" VALUES('job_01m8eypn7fw22my91m736x0x9e',8,'evt_01m8eypn7yf48r1t4wfmk3ba8d','state','info','queued','internal_error happened; it is tried again in 5 s','{"retry": 1, "not_before": "2026-11-27T16:51:36.709000+00:00", "from": "running", "to": "queued", "cause": "infrastructure_error"}',1,'2026-11-27 16:51:31.710000');
INSERT INTO "events" VALUES('job_01m8eypn82r13h2bfp1eth4zwz',1,'evt_01m8eypn82r13mjy7wsvm2mvg8','state','info','queued','Accepted','{"from": null, "to": "queued", "cause": "create"}',NULL,'2026-11-27 16:51:31.714000');
INSERT INTO "events" VALUES('job_01m8eypn82r13h2bfp1eth4zwz',2,'evt_01m8eypn86n0ymzv3q7e2et934','state','info','starting','Attempt 1 started','{"worker": "wrk_01m8eypn5mbdzm1sb9bshfwdja", "host": "host", "from": "queued", "to": "starting", "cause": "claim"}',1,'2026-11-27 16:51:31.718000');
INSERT INTO "events" VALUES('job_01m8eypn82r13h2bfp1eth4zwz',3,'evt_01m8eypn8817pptamezcxjr6p6','state','info','running','','{"from": "starting", "to": "running", "cause": "first_progress"}',1,'2026-11-27 16:51:31.720000');
INSERT INTO "events" VALUES('job_01m8eypn82r13h2bfp1eth4zwz',4,'evt_01m8eypn8817prapt6jnqbzvph','phase','info','training','','{}',1,'2026-11-27 16:51:31.720000');
INSERT INTO "events" VALUES('job_01m8eypn82r13h2bfp1eth4zwz',5,'evt_01m8eypn8dvqwj83qf15tg2cbq','checkpoint','info','checkpoint','Checkpoint at step 5','{"checkpoint": "ckpt_01m8eypn8cc359f64dwba2zt7a", "phase": "training", "step": 5, "bytes": 10, "best": true}',1,'2026-11-27 16:51:31.724000');
INSERT INTO "events" VALUES('job_01m8eypn82r13h2bfp1eth4zwz',6,'evt_01m8eypn8eexgz320wzpsxbvnc','message','info','note','äöü ''quoted''','{"a": [1, null]}',1,'2026-11-27 16:51:31.720000');
INSERT INTO "events" VALUES('job_01m8eypn82r13h2bfp1eth4zwz',7,'evt_01m8eypn8fjgem0ntj7stghmdz','student','info','student_exported','The student is exported','{"parameters": 10, "teacher_parameters": 20, "bytes": 100}',1,'2026-11-27 16:51:31.720000');
INSERT INTO "events" VALUES('job_01m8eypn82r13h2bfp1eth4zwz',8,'evt_01m8eypn8k737gfc9w1j8kkb20','state','error','failed','dataset_invalid happened','{"from": "running", "to": "failed", "cause": "user_error"}',1,'2026-11-27 16:51:31.731000');
INSERT INTO "events" VALUES('job_01m8eypn8qxwb07axtaaprfacm',1,'evt_01m8eypn8rksh4kbe5aajyv03a','state','info','queued','Accepted','{"from": null, "to": "queued", "cause": "create"}',NULL,'2026-11-27 16:51:31.736000');
INSERT INTO "events" VALUES('job_01m8eypn8qxwb07axtaaprfacm',2,'evt_01m8eypn8wsf3698yb58hzxbd3','state','info','starting','Attempt 1 started','{"worker": "wrk_01m8eypn5mbdzm1sb9bshfwdja", "host": "host", "from": "queued", "to": "starting", "cause": "claim"}',1,'2026-11-27 16:51:31.740000');
INSERT INTO "events" VALUES('job_01m8eypn8qxwb07axtaaprfacm',3,'evt_01m8eypn8ymd7sxwxfexyw92zx','state','info','running','','{"from": "starting", "to": "running", "cause": "first_progress"}',1,'2026-11-27 16:51:31.742000');
INSERT INTO "events" VALUES('job_01m8eypn8qxwb07axtaaprfacm',4,'evt_01m8eypn8zj7s8h0r0hk4rb3g0','phase','info','training','','{}',1,'2026-11-27 16:51:31.742000');
INSERT INTO "events" VALUES('job_01m8eypn8qxwb07axtaaprfacm',5,'evt_01m8eypn93xt9fzwpvydsztyrt','checkpoint','info','checkpoint','Checkpoint at step 5','{"checkpoint": "ckpt_01m8eypn92e2y6gfqgwpbdvd2q", "phase": "training", "step": 5, "bytes": 10, "best": true}',1,'2026-11-27 16:51:31.747000');
INSERT INTO "events" VALUES('job_01m8eypn8qxwb07axtaaprfacm',6,'evt_01m8eypn94ev0110pd10mmza6k','message','info','note','äöü ''quoted''','{"a": [1, null]}',1,'2026-11-27 16:51:31.742000');
INSERT INTO "events" VALUES('job_01m8eypn8qxwb07axtaaprfacm',7,'evt_01m8eypn94ev02dp1kydmxj5jp','student','info','student_exported','The student is exported','{"parameters": 10, "teacher_parameters": 20, "bytes": 100}',1,'2026-11-27 16:51:31.742000');
INSERT INTO "events" VALUES('job_01m8eypn98qwbw9jwyxhm9sgqp',1,'evt_01m8eypn99sq1m0qyk02xzgp3y','state','info','queued','Accepted','{"from": null, "to": "queued", "cause": "create"}',NULL,'2026-11-27 16:51:31.753000');
INSERT INTO "events" VALUES('job_01m8eypn98qwbw9jwyxhm9sgqp',2,'evt_01m8eypn9ewn54zczgysnfa375','state','info','paused','Paused','{"from": "queued", "to": "paused", "cause": "pause"}',NULL,'2026-11-27 16:51:31.758000');
INSERT INTO "events" VALUES('job_01m8eypn9ptb2rvbjhp8812g8s',1,'evt_01m8eypn9ptb31k3dt0jjtns5e','state','info','queued','Accepted','{"from": null, "to": "queued", "cause": "create"}',NULL,'2026-11-27 16:51:31.766000');
CREATE TABLE files (
	id VARCHAR(40) NOT NULL, 
	owner_id VARCHAR(40) NOT NULL, 
	filename TEXT NOT NULL, 
	purpose VARCHAR(64) NOT NULL, 
	bytes BIGINT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	lines BIGINT, 
	deleting BOOLEAN NOT NULL, 
	expires_at DATETIME, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_files PRIMARY KEY (id)
);
INSERT INTO "files" VALUES('file_01m8eypn5dmbpgt233s7yvx76v','usr_one','dataset äöü ''quoted''.jsonl','dataset',10,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',2,0,'2126-11-03 16:51:31.629000','2026-11-27 16:51:31.629000');
INSERT INTO "files" VALUES('file_01m8eypn5fzms6g4fh8z111hrp','usr_one','corpus äöü ''quoted''.jsonl','corpus',10,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',2,0,'2126-11-03 16:51:31.631000','2026-11-27 16:51:31.631000');
INSERT INTO "files" VALUES('file_01m8eypn5fzmskbjxcw8d7q1q1','usr_one','calibration äöü ''quoted''.jsonl','calibration',10,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',2,0,'2126-11-03 16:51:31.631000','2026-11-27 16:51:31.631000');
INSERT INTO "files" VALUES('file_01m8eypn5g6h07vj4x4z33mgd7','usr_two','dataset äöü ''quoted''.jsonl','dataset',10,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',2,0,'2126-11-03 16:51:31.632000','2026-11-27 16:51:31.632000');
INSERT INTO "files" VALUES('file_01m8eypn5g6h0fxmeevc07fgyb','usr_two','corpus äöü ''quoted''.jsonl','corpus',10,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',2,0,'2126-11-03 16:51:31.632000','2026-11-27 16:51:31.632000');
INSERT INTO "files" VALUES('file_01m8eypn5g6h0rycmdkvryg4j1','usr_two','calibration äöü ''quoted''.jsonl','calibration',10,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',2,0,'2126-11-03 16:51:31.632000','2026-11-27 16:51:31.632000');
CREATE TABLE idempotency_keys (
	owner_id VARCHAR(40) NOT NULL, 
	method VARCHAR(16) NOT NULL, 
	path VARCHAR(500) NOT NULL, 
	"key" VARCHAR(255) NOT NULL, 
	fingerprint VARCHAR(64) NOT NULL, 
	status BIGINT, 
	body TEXT, 
	created_at DATETIME NOT NULL, 
	expires_at DATETIME NOT NULL, 
	CONSTRAINT pk_idempotency_keys PRIMARY KEY (owner_id, method, path, "key")
);
INSERT INTO "idempotency_keys" VALUES('usr_one','POST','/v1/jobs','once','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',201,'{"object": "job"}','2026-11-27 16:51:31.640000','2026-11-28 16:51:31.643000');
CREATE TABLE jobs (
	id VARCHAR(40) NOT NULL, 
	owner_id VARCHAR(40) NOT NULL, 
	name TEXT, 
	spec TEXT NOT NULL, 
	metadata JSON NOT NULL, 
	seed BIGINT NOT NULL, 
	state VARCHAR(32) NOT NULL, 
	phase TEXT, 
	desired_state VARCHAR(32) NOT NULL, 
	desired_at DATETIME, 
	keep VARCHAR(32), 
	priority BIGINT NOT NULL, 
	not_before DATETIME, 
	dispatched_at DATETIME, 
	attempt BIGINT NOT NULL, 
	fence BIGINT NOT NULL, 
	max_attempts BIGINT NOT NULL, 
	retries BIGINT NOT NULL, 
	stalled BIGINT NOT NULL, 
	resume_after_attempt BIGINT NOT NULL, 
	forked_from VARCHAR(40), 
	max_runtime_seconds BIGINT, 
	deadline_at DATETIME, 
	lease_owner VARCHAR(40), 
	lease_expires_at DATETIME, 
	step BIGINT, 
	total_steps BIGINT, 
	fraction FLOAT NOT NULL, 
	furthest_fraction FLOAT NOT NULL, 
	tokens_per_second FLOAT, 
	seconds_left FLOAT, 
	progress_at DATETIME, 
	metrics JSON NOT NULL, 
	failure JSON, 
	report JSON, 
	student_model_id VARCHAR(40), 
	student_path TEXT, 
	student_manifest_sha256 TEXT, 
	student_manifest TEXT, 
	student_bytes BIGINT, 
	student_parameters BIGINT, 
	teacher_parameters BIGINT, 
	keep_checkpoints BIGINT NOT NULL, 
	event_seq BIGINT NOT NULL, 
	version BIGINT NOT NULL, 
	deleting BOOLEAN NOT NULL, 
	created_at DATETIME NOT NULL, 
	started_at DATETIME, 
	finished_at DATETIME, 
	updated_at DATETIME NOT NULL, 
	CONSTRAINT pk_jobs PRIMARY KEY (id)
);
INSERT INTO "jobs" VALUES('job_01m8eypn618682tzf6hskbff2h','usr_one','a job','{"name":"a job","seed":0,"metadata":{"team":"search"},"teacher":{"model":"path:teacher","revision":null,"dtype":null,"adapter":null},"student":{"model":"path:student","revision":null,"prune_teacher":null,"lora":null},"dataset":{"file":"file_01m8eypn5dmbpgt233s7yvx76v","template":"chat","dev_fraction":0.05,"max_dev_rows":1000},"pretrain_corpus":{"file":"file_01m8eypn5fzms6g4fh8z111hrp"},"method":{"temperature":1.0,"top_k":0,"top_p":1.0,"type":"minillm","recipe":"default","teacher_mix_alpha":null,"rollouts_per_round":null,"inner_epochs":null,"cliprange":null,"clip":null,"clip_sign":null,"reward_scale":null,"reward_clip":null,"reward_baseline":null,"reward_start":null,"gamma":null,"length_norm":null,"whitening":null,"long_part":null,"single_step":null,"single_step_weighted":null,"lm_coef":null,"kd_ratio":null},"training":{"max_steps":1000,"rows_per_step":64,"learning_rate":5e-6,"schedule":"constant","warmup_steps":0,"weight_decay":1e-6,"betas":[0.9,0.95],"grad_clip":1.0,"max_prompt_tokens":256,"max_new_tokens":256,"dtype":"bfloat16","activation_checkpointing":false,"micro_batch_tokens":8192,"decode_batch_rows":64,"decode_dtype":null,"eval_every":null,"save_every":null,"keep_checkpoints":2,"student_sft":{"max_steps":null,"epochs":3.0,"learning_rate":0.00005,"rows_per_step":32,"eval_every":null,"schedule":"cosine","warmup_steps":0,"weight_decay":0.01},"teacher_sft":null},"guards":{"enabled":true,"min_effective_sample_size":0.05,"max_length_drift":4.0,"max_repetition":0.5,"patience":3},"resources":{"gpus":1,"zero_stage":1,"cpu_offload":false},"scheduling":{"priority":0,"max_runtime_seconds":null,"max_attempts":3},"evaluation":{"metrics":["rouge_l","divergence"],"max_rows":200,"seeds":[10],"decoding":"sample","temperature":1.0,"no_repeat_ngram_size":0,"samples":4,"calibration_file":"file_01m8eypn5fzmskbjxcw8d7q1q1"},"export":{"formats":["safetensors"],"dtype":null}}','{"team": "search"}',0,'succeeded',NULL,'run',NULL,NULL,0,NULL,NULL,1,1,3,0,0,0,NULL,NULL,NULL,NULL,NULL,5,10,1.0,1.0,NULL,NULL,'2026-11-27 16:51:31.673000','{"loss": 1.5, "reverse_kl": 0.25}',NULL,'{"rouge_l": {"before": 1.0, "after": 2.0}}','model_01m8eypn7a86hst5sefyv7709v','runs/job_01m8eypn618682tzf6hskbff2h/1/student','bbac868521fea6adc181c1c7e41808f12c26d15e7f2f9b015928b3e355248e9c','{
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
',100,10,20,2,8,12,0,'2026-11-27 16:51:31.649000','2026-11-27 16:51:31.656000','2026-11-27 16:51:31.691000','2026-11-27 16:51:31.691000');
INSERT INTO "jobs" VALUES('job_01m8eypn7fw22my91m736x0x9e','usr_one','a job','{"name":"a job","seed":0,"metadata":{"team":"search"},"teacher":{"model":"path:teacher","revision":null,"dtype":null,"adapter":null},"student":{"model":"path:student","revision":null,"prune_teacher":null,"lora":null},"dataset":{"file":"file_01m8eypn5dmbpgt233s7yvx76v","template":"chat","dev_fraction":0.05,"max_dev_rows":1000},"pretrain_corpus":{"file":"file_01m8eypn5fzms6g4fh8z111hrp"},"method":{"temperature":1.0,"top_k":0,"top_p":1.0,"type":"minillm","recipe":"default","teacher_mix_alpha":null,"rollouts_per_round":null,"inner_epochs":null,"cliprange":null,"clip":null,"clip_sign":null,"reward_scale":null,"reward_clip":null,"reward_baseline":null,"reward_start":null,"gamma":null,"length_norm":null,"whitening":null,"long_part":null,"single_step":null,"single_step_weighted":null,"lm_coef":null,"kd_ratio":null},"training":{"max_steps":1000,"rows_per_step":64,"learning_rate":5e-6,"schedule":"constant","warmup_steps":0,"weight_decay":1e-6,"betas":[0.9,0.95],"grad_clip":1.0,"max_prompt_tokens":256,"max_new_tokens":256,"dtype":"bfloat16","activation_checkpointing":false,"micro_batch_tokens":8192,"decode_batch_rows":64,"decode_dtype":null,"eval_every":null,"save_every":null,"keep_checkpoints":2,"student_sft":{"max_steps":null,"epochs":3.0,"learning_rate":0.00005,"rows_per_step":32,"eval_every":null,"schedule":"cosine","warmup_steps":0,"weight_decay":0.01},"teacher_sft":null},"guards":{"enabled":true,"min_effective_sample_size":0.05,"max_length_drift":4.0,"max_repetition":0.5,"patience":3},"resources":{"gpus":1,"zero_stage":1,"cpu_offload":false},"scheduling":{"priority":5,"max_runtime_seconds":3600,"max_attempts":3},"evaluation":{"metrics":["rouge_l","divergence"],"max_rows":200,"seeds":[10],"decoding":"sample","temperature":1.0,"no_repeat_ngram_size":0,"samples":4,"calibration_file":"file_01m8eypn5fzmskbjxcw8d7q1q1"},"export":{"formats":["safetensors"],"dtype":null}}','{"team": "search"}',0,'queued',NULL,'run',NULL,NULL,5,'2026-11-27 16:51:36.709000',NULL,1,1,3,1,0,0,NULL,3600,'2026-11-27 17:51:31.698000',NULL,NULL,5,10,0.5,0.5,NULL,NULL,'2026-11-27 16:51:31.702000','{"loss": 1.5, "reverse_kl": 0.25}','{"code": "internal_error", "category": "infrastructure", "message": "internal_error happened", "param": null, "retryable": true, "attempt": 1}','{"rouge_l": {"before": 1.0, "after": 2.0}}',NULL,'runs/job_01m8eypn7fw22my91m736x0x9e/1/student','bbac868521fea6adc181c1c7e41808f12c26d15e7f2f9b015928b3e355248e9c',NULL,100,10,20,2,8,13,0,'2026-11-27 16:51:31.695000','2026-11-27 16:51:31.698000',NULL,'2026-11-27 16:51:31.710000');
INSERT INTO "jobs" VALUES('job_01m8eypn82r13h2bfp1eth4zwz','usr_two','a job','{"name":"a job","seed":0,"metadata":{"team":"search"},"teacher":{"model":"path:teacher","revision":null,"dtype":null,"adapter":null},"student":{"model":"path:student","revision":null,"prune_teacher":null,"lora":null},"dataset":{"file":"file_01m8eypn5g6h07vj4x4z33mgd7","template":"chat","dev_fraction":0.05,"max_dev_rows":1000},"pretrain_corpus":{"file":"file_01m8eypn5g6h0fxmeevc07fgyb"},"method":{"temperature":1.0,"top_k":0,"top_p":1.0,"type":"minillm","recipe":"default","teacher_mix_alpha":null,"rollouts_per_round":null,"inner_epochs":null,"cliprange":null,"clip":null,"clip_sign":null,"reward_scale":null,"reward_clip":null,"reward_baseline":null,"reward_start":null,"gamma":null,"length_norm":null,"whitening":null,"long_part":null,"single_step":null,"single_step_weighted":null,"lm_coef":null,"kd_ratio":null},"training":{"max_steps":1000,"rows_per_step":64,"learning_rate":5e-6,"schedule":"constant","warmup_steps":0,"weight_decay":1e-6,"betas":[0.9,0.95],"grad_clip":1.0,"max_prompt_tokens":256,"max_new_tokens":256,"dtype":"bfloat16","activation_checkpointing":false,"micro_batch_tokens":8192,"decode_batch_rows":64,"decode_dtype":null,"eval_every":null,"save_every":null,"keep_checkpoints":2,"student_sft":{"max_steps":null,"epochs":3.0,"learning_rate":0.00005,"rows_per_step":32,"eval_every":null,"schedule":"cosine","warmup_steps":0,"weight_decay":0.01},"teacher_sft":null},"guards":{"enabled":true,"min_effective_sample_size":0.05,"max_length_drift":4.0,"max_repetition":0.5,"patience":3},"resources":{"gpus":1,"zero_stage":1,"cpu_offload":false},"scheduling":{"priority":0,"max_runtime_seconds":null,"max_attempts":3},"evaluation":{"metrics":["rouge_l","divergence"],"max_rows":200,"seeds":[10],"decoding":"sample","temperature":1.0,"no_repeat_ngram_size":0,"samples":4,"calibration_file":"file_01m8eypn5g6h0rycmdkvryg4j1"},"export":{"formats":["safetensors"],"dtype":null}}','{"team": "search"}',0,'failed',NULL,'run',NULL,NULL,0,NULL,NULL,1,1,3,0,0,0,NULL,NULL,NULL,NULL,NULL,5,10,0.5,0.5,NULL,NULL,'2026-11-27 16:51:31.720000','{"loss": 1.5, "reverse_kl": 0.25}','{"code": "dataset_invalid", "category": "user", "message": "dataset_invalid happened", "param": null, "retryable": false, "attempt": 1}','{"rouge_l": {"before": 1.0, "after": 2.0}}',NULL,'runs/job_01m8eypn82r13h2bfp1eth4zwz/1/student','bbac868521fea6adc181c1c7e41808f12c26d15e7f2f9b015928b3e355248e9c',NULL,100,10,20,2,8,12,0,'2026-11-27 16:51:31.714000','2026-11-27 16:51:31.716000','2026-11-27 16:51:31.731000','2026-11-27 16:51:31.731000');
INSERT INTO "jobs" VALUES('job_01m8eypn8qxwb07axtaaprfacm','usr_two','a job','{"name":"a job","seed":0,"metadata":{"team":"search"},"teacher":{"model":"path:teacher","revision":null,"dtype":null,"adapter":null},"student":{"model":"path:student","revision":null,"prune_teacher":null,"lora":null},"dataset":{"file":"file_01m8eypn5g6h07vj4x4z33mgd7","template":"chat","dev_fraction":0.05,"max_dev_rows":1000},"pretrain_corpus":{"file":"file_01m8eypn5g6h0fxmeevc07fgyb"},"method":{"temperature":1.0,"top_k":0,"top_p":1.0,"type":"minillm","recipe":"default","teacher_mix_alpha":null,"rollouts_per_round":null,"inner_epochs":null,"cliprange":null,"clip":null,"clip_sign":null,"reward_scale":null,"reward_clip":null,"reward_baseline":null,"reward_start":null,"gamma":null,"length_norm":null,"whitening":null,"long_part":null,"single_step":null,"single_step_weighted":null,"lm_coef":null,"kd_ratio":null},"training":{"max_steps":1000,"rows_per_step":64,"learning_rate":5e-6,"schedule":"constant","warmup_steps":0,"weight_decay":1e-6,"betas":[0.9,0.95],"grad_clip":1.0,"max_prompt_tokens":256,"max_new_tokens":256,"dtype":"bfloat16","activation_checkpointing":false,"micro_batch_tokens":8192,"decode_batch_rows":64,"decode_dtype":null,"eval_every":null,"save_every":null,"keep_checkpoints":2,"student_sft":{"max_steps":null,"epochs":3.0,"learning_rate":0.00005,"rows_per_step":32,"eval_every":null,"schedule":"cosine","warmup_steps":0,"weight_decay":0.01},"teacher_sft":null},"guards":{"enabled":true,"min_effective_sample_size":0.05,"max_length_drift":4.0,"max_repetition":0.5,"patience":3},"resources":{"gpus":1,"zero_stage":1,"cpu_offload":false},"scheduling":{"priority":0,"max_runtime_seconds":null,"max_attempts":3},"evaluation":{"metrics":["rouge_l","divergence"],"max_rows":200,"seeds":[10],"decoding":"sample","temperature":1.0,"no_repeat_ngram_size":0,"samples":4,"calibration_file":"file_01m8eypn5g6h0rycmdkvryg4j1"},"export":{"formats":["safetensors"],"dtype":null}}','{"team": "search"}',0,'running','training','run',NULL,NULL,0,NULL,NULL,1,1,3,0,0,0,NULL,NULL,NULL,'wrk_01m8eypn5mbdzm1sb9bshfwdja','2126-09-23 00:51:31.738000',5,10,0.5,0.5,NULL,NULL,'2026-11-27 16:51:31.742000','{"loss": 1.5, "reverse_kl": 0.25}',NULL,'{"rouge_l": {"before": 1.0, "after": 2.0}}',NULL,'runs/job_01m8eypn8qxwb07axtaaprfacm/1/student','bbac868521fea6adc181c1c7e41808f12c26d15e7f2f9b015928b3e355248e9c',NULL,100,10,20,2,7,10,0,'2026-11-27 16:51:31.735000','2026-11-27 16:51:31.738000',NULL,'2026-11-27 16:51:31.742000');
INSERT INTO "jobs" VALUES('job_01m8eypn98qwbw9jwyxhm9sgqp','usr_two','a job','{"name":"a job","seed":0,"metadata":{"team":"search"},"teacher":{"model":"path:teacher","revision":null,"dtype":null,"adapter":null},"student":{"model":null,"revision":null,"prune_teacher":{"layers":2},"lora":null},"dataset":{"file":"file_01m8eypn5g6h07vj4x4z33mgd7","template":"chat","dev_fraction":0.05,"max_dev_rows":1000},"pretrain_corpus":{"file":"file_01m8eypn5g6h0fxmeevc07fgyb"},"method":{"temperature":1.0,"top_k":0,"top_p":1.0,"type":"minillm","recipe":"default","teacher_mix_alpha":null,"rollouts_per_round":null,"inner_epochs":null,"cliprange":null,"clip":null,"clip_sign":null,"reward_scale":null,"reward_clip":null,"reward_baseline":null,"reward_start":null,"gamma":null,"length_norm":null,"whitening":null,"long_part":null,"single_step":null,"single_step_weighted":null,"lm_coef":null,"kd_ratio":null},"training":{"max_steps":1000,"rows_per_step":64,"learning_rate":5e-6,"schedule":"constant","warmup_steps":0,"weight_decay":1e-6,"betas":[0.9,0.95],"grad_clip":1.0,"max_prompt_tokens":256,"max_new_tokens":256,"dtype":"bfloat16","activation_checkpointing":false,"micro_batch_tokens":8192,"decode_batch_rows":64,"decode_dtype":null,"eval_every":null,"save_every":null,"keep_checkpoints":2,"student_sft":{"max_steps":null,"epochs":3.0,"learning_rate":0.00005,"rows_per_step":32,"eval_every":null,"schedule":"cosine","warmup_steps":0,"weight_decay":0.01},"teacher_sft":null},"guards":{"enabled":true,"min_effective_sample_size":0.05,"max_length_drift":4.0,"max_repetition":0.5,"patience":3},"resources":{"gpus":1,"zero_stage":1,"cpu_offload":false},"scheduling":{"priority":0,"max_runtime_seconds":null,"max_attempts":3},"evaluation":{"metrics":["rouge_l","divergence"],"max_rows":200,"seeds":[10],"decoding":"sample","temperature":1.0,"no_repeat_ngram_size":0,"samples":4,"calibration_file":"file_01m8eypn5g6h0rycmdkvryg4j1"},"export":{"formats":["safetensors"],"dtype":null}}','{"team": "search"}',0,'paused',NULL,'pause','2026-11-27 16:51:31.757000',NULL,0,NULL,NULL,0,0,3,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0.0,0.0,NULL,NULL,NULL,'{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,2,2,5,0,'2026-11-27 16:51:31.752000',NULL,NULL,'2026-11-27 16:51:31.758000');
INSERT INTO "jobs" VALUES('job_01m8eypn9ptb2rvbjhp8812g8s','usr_one',NULL,'{"name":null,"seed":0,"metadata":{},"teacher":{"model":"model_01m8eypn7a86hst5sefyv7709v","revision":null,"dtype":null,"adapter":null},"student":{"model":"path:student","revision":null,"prune_teacher":null,"lora":null},"dataset":{"file":"file_01m8eypn5dmbpgt233s7yvx76v","template":"chat","dev_fraction":0.05,"max_dev_rows":1000},"pretrain_corpus":null,"method":{"type":"kd","kd_ratio":0.5,"divergence":"forward_kl","temperature":1.0,"jsd_beta":0.5,"skew_alpha":0.1},"training":{"max_steps":1000,"rows_per_step":64,"learning_rate":5e-6,"schedule":"constant","warmup_steps":0,"weight_decay":1e-6,"betas":[0.9,0.95],"grad_clip":1.0,"max_prompt_tokens":256,"max_new_tokens":256,"dtype":"bfloat16","activation_checkpointing":false,"micro_batch_tokens":8192,"decode_batch_rows":64,"decode_dtype":null,"eval_every":null,"save_every":null,"keep_checkpoints":2,"student_sft":{"max_steps":null,"epochs":3.0,"learning_rate":0.00005,"rows_per_step":32,"eval_every":null,"schedule":"cosine","warmup_steps":0,"weight_decay":0.01},"teacher_sft":null},"guards":{"enabled":true,"min_effective_sample_size":0.05,"max_length_drift":4.0,"max_repetition":0.5,"patience":3},"resources":{"gpus":1,"zero_stage":1,"cpu_offload":false},"scheduling":{"priority":0,"max_runtime_seconds":null,"max_attempts":3},"evaluation":{"metrics":["rouge_l","divergence"],"max_rows":200,"seeds":[10],"decoding":"sample","temperature":1.0,"no_repeat_ngram_size":0,"samples":4,"calibration_file":null},"export":{"formats":["safetensors"],"dtype":null}}','{}',0,'queued',NULL,'run',NULL,NULL,0,NULL,NULL,0,0,3,0,0,0,'ckpt_01m8eypn72gayrf2z7xmg8z4e7',NULL,NULL,NULL,NULL,NULL,NULL,0.0,0.0,NULL,NULL,NULL,'{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,2,1,2,0,'2026-11-27 16:51:31.766000',NULL,NULL,'2026-11-27 16:51:31.766000');
CREATE TABLE metric_points (
	job_id VARCHAR(40) NOT NULL, 
	attempt BIGINT NOT NULL, 
	seq BIGINT NOT NULL, 
	phase VARCHAR(32) NOT NULL, 
	step BIGINT NOT NULL, 
	"values" JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_metric_points PRIMARY KEY (job_id, attempt, seq), 
	CONSTRAINT fk_metric_points_job_id FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "metric_points" VALUES('job_01m8eypn618682tzf6hskbff2h',1,3,'training',5,'{"loss": 1.5, "reverse_kl": 0.25}','2026-11-27 16:51:31.673000');
INSERT INTO "metric_points" VALUES('job_01m8eypn7fw22my91m736x0x9e',1,3,'training',5,'{"loss": 1.5, "reverse_kl": 0.25}','2026-11-27 16:51:31.702000');
INSERT INTO "metric_points" VALUES('job_01m8eypn82r13h2bfp1eth4zwz',1,3,'training',5,'{"loss": 1.5, "reverse_kl": 0.25}','2026-11-27 16:51:31.720000');
INSERT INTO "metric_points" VALUES('job_01m8eypn8qxwb07axtaaprfacm',1,3,'training',5,'{"loss": 1.5, "reverse_kl": 0.25}','2026-11-27 16:51:31.742000');
CREATE TABLE models (
	id VARCHAR(40) NOT NULL, 
	owner_id VARCHAR(40), 
	reference VARCHAR(500) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	name TEXT NOT NULL, 
	path TEXT NOT NULL, 
	job_id VARCHAR(40), 
	revision TEXT, 
	architecture TEXT NOT NULL, 
	causal_lm BOOLEAN NOT NULL, 
	parameters BIGINT NOT NULL, 
	layers BIGINT NOT NULL, 
	vocab_size BIGINT NOT NULL, 
	context_length BIGINT, 
	tokenizer_fingerprint TEXT, 
	dtype TEXT, 
	bytes BIGINT NOT NULL, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_models PRIMARY KEY (id), 
	CONSTRAINT uq_models_reference UNIQUE (reference)
);
INSERT INTO "models" VALUES('model_01m8eypn5k2zds4cqykqjv4w6h',NULL,'path:teacher','base','teacher','teacher',NULL,'main','LlamaForCausalLM',1,10,2,32,64,'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','float32',100,'2026-11-27 16:51:31.635000');
INSERT INTO "models" VALUES('model_01m8eypn7a86hst5sefyv7709v','usr_one','model_01m8eypn7a86hst5sefyv7709v','student','a job','runs/job_01m8eypn618682tzf6hskbff2h/1/student','job_01m8eypn618682tzf6hskbff2h',NULL,'LlamaForCausalLM',1,10,2,32,64,'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','float32',100,'2026-11-27 16:51:31.690000');
CREATE TABLE workers (
	id VARCHAR(40) NOT NULL, 
	host TEXT NOT NULL, 
	pid BIGINT NOT NULL, 
	slots BIGINT NOT NULL, 
	devices JSON NOT NULL, 
	heartbeat_seconds FLOAT NOT NULL, 
	started_at DATETIME NOT NULL, 
	heartbeat_at DATETIME NOT NULL, 
	stopped_at DATETIME, 
	draining BOOLEAN NOT NULL, 
	slot_dirty TEXT, 
	CONSTRAINT pk_workers PRIMARY KEY (id)
);
INSERT INTO "workers" VALUES('wrk_01m8eypn5mbdzm1sb9bshfwdja','host',2,1,'{"cpus": 2, "gpus": [{"index": "0", "memory": 17179869184}, {"index": "1", "memory": 17179869184}]}',5.0,'2026-11-27 16:51:31.636000','2026-11-27 16:51:31.636000',NULL,0,NULL);
INSERT INTO "workers" VALUES('wrk_01m8eypn5nn709hbnx33cz4nq0','host',1,1,'{}',5.0,'2026-11-27 16:51:31.637000','2026-11-27 16:51:31.637000','2026-11-27 16:51:31.639000',0,NULL);
CREATE INDEX ix_files_owner_id_created_at_id ON files (owner_id, created_at, id);
CREATE INDEX ix_idempotency_keys_expires_at ON idempotency_keys (expires_at);
CREATE INDEX ix_jobs_lease_expires_at ON jobs (lease_expires_at);
CREATE INDEX ix_jobs_owner_id_created_at_id ON jobs (owner_id, created_at, id);
CREATE INDEX ix_jobs_state_priority_created_at_id ON jobs (state, priority, created_at, id);
CREATE INDEX ix_models_created_at_id ON models (created_at, id);
COMMIT;
