-- @config schema.name.adjustment.mode=avro_unicode
-- @config field.name.adjustment.mode=avro_unicode
-- Quoted / mixed-case / odd identifiers: topics, keys and field names.
-- @setup
CREATE SCHEMA "My Schema";
CREATE TABLE public."MixedCase" ("Id" int PRIMARY KEY, "camelCol" text, "UPPER" int, "with space" text, "dash-col" int, "dot.col" int, "quote""col" int, "1digit" int, "select" int, "ünï" text, "$dollar" int);
CREATE TABLE "My Schema"."Table With Space" (id int PRIMARY KEY, v text);
CREATE TABLE public."dot.table" (id int PRIMARY KEY);
CREATE TABLE public."täble" (id int PRIMARY KEY);
CREATE TABLE public.a_very_long_table_name_that_is_exactly_sixty_three_bytes_long_xx (id int PRIMARY KEY);
INSERT INTO public."MixedCase" VALUES (1, 'c', 2, 's', 3, 4, 5, 6, 7, 'u', 8);
INSERT INTO "My Schema"."Table With Space" VALUES (1, 'v');
-- @stream
INSERT INTO public."MixedCase" VALUES (2, 'c', 2, 's', 3, 4, 5, 6, 7, 'u', 8);
UPDATE public."MixedCase" SET "camelCol" = 'c2' WHERE "Id" = 2;
DELETE FROM public."MixedCase" WHERE "Id" = 1;
INSERT INTO "My Schema"."Table With Space" VALUES (2, 'v');
INSERT INTO public."dot.table" VALUES (1);
INSERT INTO public."täble" VALUES (1);
INSERT INTO public.a_very_long_table_name_that_is_exactly_sixty_three_bytes_long_xx VALUES (1);
