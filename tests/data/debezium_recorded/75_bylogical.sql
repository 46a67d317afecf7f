-- @config transforms=Reroute
-- @config transforms.Reroute.type=io.debezium.transforms.ByLogicalTableRouter
-- @config transforms.Reroute.topic.regex=(.*)shard_(.*)
-- @config transforms.Reroute.topic.replacement=$1all
-- @setup
CREATE TABLE public.shard_1 (id int PRIMARY KEY, v text);
CREATE TABLE public.shard_2 (id int PRIMARY KEY, v text);
CREATE TABLE public.other (id int PRIMARY KEY, v text);
INSERT INTO public.shard_1 VALUES (1,'x');
INSERT INTO public.other VALUES (1,'x');
-- @stream
INSERT INTO public.shard_2 VALUES (1,'y');
UPDATE public.shard_1 SET v='z';
DELETE FROM public.shard_1;
