-- The same with escapes, a delimiter and a topic of transactions.
-- @config schema.name.adjustment.mode=avro_unicode
-- @config field.name.adjustment.mode=avro_unicode
-- @config topic.delimiter=-
-- @config topic.transaction=txs
-- @config provide.transaction.metadata=true
-- @setup
CREATE SCHEMA "Ünï code";
CREATE TABLE "Ünï code"."Täble.1 x" ("Id" int PRIMARY KEY, "naïve col" text, "dot.ted" int, "quo""te" text, "1st" int, "emoji😀" text, "ORDER" int, "a-b" int, "_u" int);
INSERT INTO "Ünï code"."Täble.1 x" VALUES (1, 'ä', 2, 'q', 3, 'e', 4, 5, 6);
CREATE TABLE public."UPPER" ("ID" int, "Key Two" text, v text, PRIMARY KEY ("Key Two", "ID"));
INSERT INTO public."UPPER" VALUES (1, 'k', 'v');
CREATE TABLE public."$money-back" (id int PRIMARY KEY);
CREATE TABLE public."日本" (id int PRIMARY KEY, "列" text);
INSERT INTO public."日本" VALUES (1, '値');
-- @stream
UPDATE "Ünï code"."Täble.1 x" SET "naïve col" = NULL, "Id" = 2;
DELETE FROM "Ünï code"."Täble.1 x";
UPDATE public."UPPER" SET "Key Two" = 'k2';
INSERT INTO public."$money-back" VALUES (1);
UPDATE public."日本" SET "列" = '新';
TRUNCATE public."日本";
