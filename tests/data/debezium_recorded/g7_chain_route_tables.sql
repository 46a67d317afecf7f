-- Shards in one topic without their names in keys.
-- @config transforms=t0,t1,t2
-- @config transforms.t0.type=io.debezium.transforms.ByLogicalTableRouter
-- @config transforms.t0.topic.regex=(.*)_[0-9]+
-- @config transforms.t0.topic.replacement=$1_all
-- @config transforms.t0.key.enforce.uniqueness=false
-- @config transforms.t0.predicate=msg
-- @config transforms.t0.negate=true
-- @config transforms.t1.type=io.debezium.transforms.ExtractNewRecordState
-- @config transforms.t1.delete.tombstone.handling.mode=rewrite
-- @config transforms.t1.predicate=msg
-- @config transforms.t1.negate=true
-- @config transforms.t2.type=org.apache.kafka.connect.transforms.RegexRouter
-- @config transforms.t2.regex=dbz\.(.*)
-- @config transforms.t2.replacement=$1
-- @config transforms.t2.predicate=msg
-- @config transforms.t2.negate=true
-- @config predicates=msg
-- @config predicates.msg.type=org.apache.kafka.connect.transforms.predicates.TopicNameMatches
-- @config predicates.msg.pattern=.*message
-- @config tombstones.on.delete=true
-- @setup
CREATE TABLE public.sh_1 (id int PRIMARY KEY, v text);
CREATE TABLE public.sh_2 (id int PRIMARY KEY, v text);
CREATE TABLE public.other (id int PRIMARY KEY);
INSERT INTO public.sh_1 VALUES (1, 'a');
INSERT INTO public.sh_2 VALUES (1, 'b');
-- @stream
UPDATE public.sh_1 SET v = 'c';
UPDATE public.sh_2 SET id = 2;
DELETE FROM public.sh_1;
INSERT INTO public.other VALUES (1);
